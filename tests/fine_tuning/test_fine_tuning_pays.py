"""Few images and few steps: a network that has seen others is ahead of one that starts anew."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.models.resnet import Bottleneck, ResNet

from data_preprocessing import load_test
from data_sources.layout import every_image
from data_sources.normalisation import Normalisation
from fine_tuning.transfer import transfer
from model_preparation import prepare_training
from nntest import evaluate
from nntrain import EpochProgress, TrainingStep, train_epoch
from run_state.initial_weights import read_weights
from user_input import UserInput

pytestmark = pytest.mark.usefixtures("shallow")
CPU = torch.device("cpu")
RECIPE = {"depth": 26, "stem": "compact", "dataset": "digits", "image_size": 8, "device": "cpu", "warmup_epochs": 0}
RECIPE |= {"optimizer": "sgd", "initial_lr": 0.1}


def write(folder: Path, tinted: bool, digits: slice) -> Path:
    """The images of so many digits, in folders by class; tinted ones are dark on light in their green."""
    data = load_digits()
    for number in range(*digits.indices(len(data.images))):
        grey = (data.images[number] * (255 / 16)).astype(np.uint8)
        pixels = np.stack([grey, 255 - grey, grey // 2] if tinted else [grey] * 3, axis=-1)
        place = folder / f"digit {data.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def trained(folder: Path, passes: int, init_from: Path | None = None, **settings):
    """A network that has seen the images of a folder so many times, from these weights or from none."""
    args = UserInput(**RECIPE, **settings, init_from=init_from and str(init_from))
    training = prepare_training(args, 10, CPU)
    weights = read_weights(args)
    if weights:
        transfer(weights, training.model, range(10))
    loader = images_of(folder, args)
    for number in range(passes):
        order = torch.randperm(loader.images, generator=torch.Generator().manual_seed(number))
        batches = loader.reordered(order[: loader.images // 20 * 20], 20)
        train_epoch(TrainingStep(training), batches, 1, EpochProgress())
    return training


def images_of(folder: Path, args: UserInput):
    images, _ = every_image(folder, {})
    return load_test(args, images, Normalisation((0.0,) * 3, (1.0,) * 3), CPU)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with torchvision's own names, of a network that has learnt grey digits."""
    folder = tmp_path_factory.mktemp("source")
    training = trained(write(folder / "grey", False, slice(1000)), 5, model="baseline")
    named = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10)
    named.conv1 = training.model.conv1
    named.load_state_dict(training.model.state_dict())
    torch.save(named.state_dict(), folder / "resnet.pth")
    return folder / "resnet.pth"


@pytest.mark.parametrize(
    ("tinted", "settings"),
    [(True, {"model": "baseline"}), (False, {"stages": "CCLL"})],
    ids=["digits to another folder", "lambda layers over torchvision's convolutions"],
)
def test_trained_weights_beat_a_network_drawn_anew(
    source: Path, tmp_path: Path, tinted: bool, settings: dict[str, str]
) -> None:
    few, others = (
        write(tmp_path / name, tinted, part) for name, part in (("few", slice(1000, 1100)), ("test", slice(1100, 1400)))
    )
    test = images_of(others, UserInput(**RECIPE))
    anew, tuned = (evaluate(trained(few, 8, weights, **settings), test).top1 for weights in (None, source))
    assert tuned > anew + 20.0
    assert tuned > 50.0
