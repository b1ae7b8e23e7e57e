"""Tests of a network: after each epoch of a run, and by itself.

    python nntest.py --checkpoint latest                                         # on the run's own test images
    python nntest.py --checkpoint latest --dataset imagefolder --data_dir other  # on others of the same classes
    python nntest.py --checkpoint cifar.pt --dataset cifar10 --device cpu --precision fp32

It prints loss, top-1, top-5 (with more than five classes), the calibration error and each class's accuracy, and writes
test.json, classes.csv, predictions.csv (file, class, prediction, confidence), confusion.csv, confusion.png and
mistakes.png (the mistakes of which the network was surest) into --out.

Other images lie in data_dir/test/<class>, or without folders train and test in data_dir/<class>, and are all tested on.
Their classes have the names that the run knows; not all of them need be there.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import one_line_errors
from command_line.tools import read_test

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_test(__doc__)

import argparse
import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm import tqdm

from acceleration.devices import autocast, choose_precision, describe_device, enough_memory, find_device
from acceleration.distributed import all_max, all_sum, hide_bar, share_buffers
from command_line import errors
from command_line.errors import InputError
from command_line.paths import project_path, shown
from data_preprocessing import folder_options, load_test
from data_sources.batches import Loader, OrderedLoader, Until, mix, shares
from data_sources.fingerprint import differences
from data_sources.image_set import ImageSet
from data_sources.layout import every_image
from data_sources.sources import read_source
from model_preparation import Training, count_correct, evaluation_logits
from run_state.checkpoints import write_atomically
from run_state.run_folder import CHECKPOINTS
from run_state.trained_network import TrainedNetwork, load_network
from scoring import writing
from scoring.evaluation import BINS, TOP, Evaluation
from scoring.writing import ImagesOfTest
from user_input import UserInput

REESTIMATED_ON = 100  # batches from which the batch norms of averaged weights take their statistics
REORDERED = 1  # tells the draw of a test's order from those of the training
MOST_LISTED = 20  # classes that the console lists; classes.csv has them all


class Computing(Protocol):
    """What a test asks of a run's `Training`, or of a network by itself."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def test_flips(self) -> bool: ...

    def autocast(self) -> torch.autocast: ...


@dataclass(frozen=True)
class Alone:
    """A trained network on a device, without what training takes."""

    model: nn.Module
    device: torch.device
    precision: str  # fp32, bf16 or fp16
    test_flips: bool = False

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return autocast(self.device, self.precision)


# ------------------------------------------------------------------------------------------------ one pass


@torch.inference_mode()
def evaluate(
    training: Computing,
    loader: OrderedLoader,
    name: str = "test",
    until: Until = iter,
    network: nn.Module | None = None,
    training_mode: bool = False,
) -> Evaluation | None:
    """Count every image once, over all processes; None where `until` ended it early.

    Args:
        until: gives the batches that it is given, all or the first of them, such as those before a stop.
        network: another one than that of `training`, such as its average.
        training_mode: normalise by the statistics of each batch, and leave the running ones as they are.
    """
    network = training.model if network is None else network
    share_buffers(network)
    started, left = time.perf_counter(), len(loader)
    counts = _Counts(loader.images, training.device)
    bar = tqdm(loader.batches(), name, len(loader), leave=False, disable=hide_bar())
    with _mode(network, training_mode):
        for (pixels, labels), share in zip(until(bar), shares(loader.images, loader.batch_size), strict=False):
            left -= 1
            if not len(labels):  # of a last, small batch there may be none left for this process
                continue
            with training.autocast():
                logits = evaluation_logits(network, pixels, training.test_flips)
            counts.add(logits, labels, share)
    return None if left else counts.evaluation(started)


class _Counts:
    """What the batches of a test come to, all of it on the device: no batch waits for another. n images in all."""

    def __init__(self, images: int, device: torch.device) -> None:
        self.images, self.width = 0, 0  # of this process; of the logits
        self.loss = torch.tensor(0.0, device=device)
        self.right = torch.zeros(2, dtype=torch.long, device=device)  # the likeliest class, among the likeliest TOP
        self.classes = torch.zeros(2, images, dtype=torch.long, device=device)  # (2, n): the true, the predicted
        self.confidence = torch.zeros(images, device=device)  # (n,)

    def add(self, logits: Tensor, labels: Tensor, share: slice) -> None:
        """Logits (b, classes) and labels (b,) of the images whose places are `share`."""
        logits = logits.float()
        self.images, self.width = self.images + len(labels), logits.shape[1]
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        first = logits.topk(min(TOP, self.width), dim=1).indices
        self.right += torch.stack([count_correct(logits, labels), (first == labels[:, None]).sum()])
        self.classes[0, share], self.classes[1, share] = labels, logits.argmax(1)
        self.confidence[share] = logits.softmax(1).amax(1)

    def evaluation(self, started: float) -> Evaluation:
        """Those of all processes together; `started` is a reading of `time.perf_counter`."""
        loss, images, *right = all_sum(float(self.loss), self.images, *self.right.tolist())
        labels, predicted = torch.tensor(all_sum(*self.classes.flatten().tolist())).long().view(2, -1)
        confidence = torch.tensor(all_sum(*self.confidence.tolist()))
        top1, top5 = (100.0 * count / images for count in right)
        several = all_max(self.width) > TOP
        seconds = time.perf_counter() - started
        return Evaluation(
            loss / images, top1, int(images), seconds, labels, predicted, confidence, top5 if several else None
        )


def evaluate_in_training_mode(
    training: Training,
    loader: OrderedLoader,
    batch_size: int,
    seed: int,
    epoch: int,
    until: Until = iter,
) -> Evaluation | None:
    """The test as the study made it: batches of `batch_size` in an order of the epoch's own, each with its statistics.

    The order is a function of (seed, epoch). The classes come back in the data's order.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch, REORDERED))
    order = torch.randperm(loader.images, generator=generator)
    reordered = loader.reordered(order, batch_without_rest_of_one(loader.images, batch_size))
    found = evaluate(training, reordered, "test in training mode", until, training_mode=True)
    if found is None:
        return None
    back = order.argsort()
    places = {name: getattr(found, name)[back] for name in ("labels", "predicted", "confidence")}
    return dataclasses.replace(found, **places)


def batch_without_rest_of_one(images: int, batch_size: int) -> int:
    """The next smaller batch that leaves no lone image, which has no statistics, else the next larger one."""
    sizes = (*range(batch_size, 1, -1), *range(batch_size + 1, images + 1))
    return next((size for size in sizes if images % size != 1), batch_size)


def evaluate_average(
    training: Training,
    average: AveragedModel,
    train_loader: Loader,
    loader: OrderedLoader,
    epoch: int,
    until: Until = iter,
) -> Evaluation | None:
    """The test of the averaged weights, their batch norms' statistics estimated anew on training images."""
    images = (pixels for pixels, _ in until(itertools.islice(train_loader.batches(epoch), REESTIMATED_ON)))
    with training.autocast():
        update_bn(images, average)
    return evaluate(training, loader, "test of the average", until, average)


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; evaluation mode and the same buffers afterwards."""
    buffers = [buffer.clone() for buffer in network.buffers()] if training else []
    network.train(training)
    try:
        yield
    finally:
        for buffer, before in zip(network.buffers() if training else [], buffers, strict=True):
            buffer.copy_(before)
        network.eval()


# ------------------------------------------------------------------------------------------------ by itself


@enough_memory()
def main(argv: list[str] | None = None) -> Evaluation:
    """Test the network that the command line names, print what it comes to, and write it down."""
    arguments = read_test(__doc__, argv)
    network = load_network(arguments.checkpoint)
    args = settings_of_test(network.args, arguments)
    device = find_device(arguments.device)
    precision = choose_precision(args.precision, device)
    tested = images_of_test(network, args, arguments.data_dir is not None)
    model = network.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = load_test(args, tested.images, network.normalisation, device, arguments.batch_size)
    found = evaluate(Alone(model, device, precision, args.test_flips), loader)
    assert found is not None  # nothing stops it
    where = args.data_dir if args.dataset == "imagefolder" else args.dataset
    about = {
        "checkpoint": shown(network.file),
        "epochs": network.epochs_done,
        "dataset": args.dataset,
        "data_dir": args.data_dir,
        "device": describe_device(device),
        "precision": precision,
    }
    print(f"{network.title}, on {found.images:,} test images of {where}")
    print(f"{about['device']}, {precision}, {found.seconds:.1f} s\n")
    print("\n".join(lines(found, tested.classes)))
    write(arguments.out or default_folder(network.file, arguments), found, tested, about)
    return found


def settings_of_test(args: UserInput, arguments: argparse.Namespace) -> UserInput:
    """The run's settings with those of the command line, which are checked as all settings are."""
    given = {
        name: getattr(arguments, name)
        for name in ("dataset", "device", "precision", "batch_size", "workers")
        if getattr(arguments, name) is not None
    }
    given["accumulate"] = 1  # a test has no use for it, and smaller batches would not go with it
    if arguments.data_dir is not None:
        if given.get("dataset", args.dataset) == "digits":
            raise InputError(
                "data_dir: digits are in no folder; to test on images in folders of classes, add --dataset imagefolder"
            )
        given["data_dir"] = project_path(arguments.data_dir)
    if given.get("dataset", args.dataset) != args.dataset:  # of which the run's settings say nothing
        given |= {"test_fraction": 0.0, "skip_bad_images": False}
    return dataclasses.replace(args, **given)


def images_of_test(network: TrainedNetwork, args: UserInput, other_folder: bool) -> ImagesOfTest:
    """The run's own test images, wherever they lie now, or all that other data have for a test.

    Raises:
        InputError: there are none, or some are of a class that the network does not know.
    """
    try:
        source = read_source(args.dataset, args.data_path, folder_options(args))
        images, classes = source.test, source.classes
        amiss = differences(network.config["data"], classes, source.fingerprint)
    except InputError:
        if not other_folder or args.dataset != "imagefolder":
            raise
        amiss = ["they have no parts like the run's"]
    all_of_them = bool(amiss) and other_folder and args.dataset == "imagefolder"
    if all_of_them:
        images, classes = every_image(args.data_path, network.whites)
    images = numbered(images, classes, network.classes)
    if amiss and args.dataset == network.args.dataset:
        rest = f"; all {len(images):,} images are tested on, be they trained on or not" if all_of_them else ""
        errors.tell(f"data_dir: the data are not those that the run was trained on: {'; '.join(amiss)}{rest}")
    return ImagesOfTest(images, network.classes, network.view)


def numbered(images: ImageSet, classes: tuple[str, ...], known: tuple[str, ...]) -> ImageSet:
    """The images with their labels as the network numbers its classes, by their names."""
    if unknown := [name for name in classes if name not in known]:
        more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"data_dir: class {unknown[0]} is none that the network knows{more}; it knows "
            f"{', '.join(known[:MOST_LISTED])}"
        )
    numbers = np.array([known.index(name) for name in classes])
    return dataclasses.replace(images, labels=numbers[images.labels])


def lines(found: Evaluation, classes: tuple[str, ...]) -> Iterator[str]:
    """What the console shows: the figures, and a row for each class, of many classes for the weakest."""
    top5 = "" if found.top5 is None else f", top-5 {found.top5:.2f} %"
    error = f"calibration error {found.calibration_error:.2f} points ({BINS} bins)"
    yield f"loss {found.loss:.4f}, top-1 {found.top1:.2f} %{top5}, {error}\n"
    scores = [score for score in found.of_classes(classes) if score.images]
    tested = len(scores)
    if tested > MOST_LISTED:
        scores = sorted(scores, key=lambda score: score.right / score.images)[:MOST_LISTED]
    width = max(len("class"), *(len(score.name) for score in scores))
    yield f"{'class':{width}}  images  top-1 %"
    for score in scores:
        yield f"{score.name:{width}}  {score.images:6d}  {score.top1:7.2f}"
    if len(scores) < tested:
        yield f"the weakest of {tested:,} classes; classes.csv has them all"
    if tested < len(classes):
        yield f"{tested:,} of {len(classes):,} classes have images here"


def default_folder(file: Path, arguments: argparse.Namespace) -> Path:
    """`tests/<checkpoint>` in the run's folder, or beside a file that is in none; what else is given is named, too."""
    run = file.absolute().parent
    run = run.parent if run.name == CHECKPOINTS else run
    data = arguments.data_dir and _called(Path(project_path(arguments.data_dir)))
    others = [name for name in (arguments.dataset, data, arguments.precision) if name]
    return run / "tests" / "_".join([file.stem, *others])


def _called(folder: Path) -> str:
    """`photos-1f3a9c`: a folder's name, and what tells it from others of that name."""
    return f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}"


def write(folder: Path, found: Evaluation, tested: ImagesOfTest, about: dict[str, Any]) -> None:
    """Write all that is kept of the test; raises `InputError` where it cannot be written."""
    names = []
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in writing.files(found, tested, about).items():
        try:
            made = content()
        except Exception as error:  # a picture of 10,000 classes, a font, an image that has gone: the figures are there
            errors.tell(f"{name} could not be made ({errors.summary(error)})")
            continue
        with _writing(folder):
            write_atomically(folder / name, made)
        names.append(name)
    print(f"\n{', '.join(names)} in {shown(folder)}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"out: {folder} cannot be written ({error.strerror}); take another --out") from error


if __name__ == "__main__":
    with one_line_errors():
        main()
