"""What of trained weights is put into a network, and what is said of it."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from command_line.errors import InputError
from fine_tuning.transfer import Weights, told, told_of_start, transfer, unwrapped
from lambda_layer import LambdaLayer
from resnet import DEPTHS
from resnet_lambda import build_lambda_resnet

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def _small_with_a_second_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPTHS, 26, (1, 1, 1, 2))  # what is tested here, any depth has


def network(**settings) -> ResNet:
    torch.manual_seed(settings.pop("seed", 0))
    usual = {"stages": "CCLL", "image_size": 32, "num_classes": 3, "zero_init_residual": False}
    return build_lambda_resnet(26, **{**usual, **settings}).eval()


def weights(model: nn.Module, **known) -> Weights:
    return Weights("there", model.state_dict(), **known)


@torch.no_grad()
def test_of_the_same_network_all_is_taken() -> None:
    theirs, ours, images = network(seed=1), network(), torch.randn(2, 3, 32, 32)
    assert not torch.equal(ours(images), theirs(images))
    done = transfer(weights(theirs, classes=CLASSES, run="r", epochs=7), ours, CLASSES)
    assert torch.equal(ours(images), theirs(images))
    assert (done["left_out"], done["made_anew"], done["resized"]) == ([], [], [])
    assert told(done) == [
        "weights of there after 7 epochs: stem, c2, c3, c4, c5, head",
        "left out: nothing",
        "made anew: nothing",
    ]


@pytest.mark.parametrize(
    ("theirs", "known"),
    [({"num_classes": 5}, {}), ({}, {"classes": ("ant", "bee", "dog")}), ({}, {"classes": ("bee", "ant", "cat")})],
    ids=["another number of classes", "another class", "another order"],
)
def test_a_head_of_other_classes_is_left_out(theirs: dict, known: dict) -> None:
    given, ours = network(seed=1, **theirs), network()
    head = ours.fc.weight.clone()
    done = transfer(weights(given, **known), ours, CLASSES)
    assert done["left_out"] == done["made_anew"] == ["fc.weight", "fc.bias"]
    assert torch.equal(ours.fc.weight, head)
    assert torch.equal(ours.layer4[1].conv3.weight, given.layer4[1].conv3.weight)
    assert told(done)[1:] == ["left out: fc", "made anew: fc"]


@torch.no_grad()
def test_embeddings_are_resized_as_a_network_is_that_is_built_of_them() -> None:
    small, large = network(seed=1, image_size=32), network(image_size=64)
    done = transfer(weights(small), large, CLASSES)
    expected = network(image_size=64, weights=small.state_dict(), resize_weights=True)
    torch.testing.assert_close(dict(large.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    assert done["resized"] == [f"layer{stage}.conv2.embedding" for stage in ("3.0", "4.0", "4.1")]
    assert told(done)[0].endswith("head, 3 position embeddings resized")


def test_torchvisions_convolutions_are_taken_and_lambda_layers_are_made_anew() -> None:
    theirs, ours = ResNet(Bottleneck, [1, 1, 1, 2]), network()
    done = transfer(weights(theirs), ours, CLASSES)
    own, given = ours.state_dict(), theirs.state_dict()
    replaced = [f"layer{stage}.conv2.weight" for stage in ("3.0", "4.0", "4.1")]
    assert done["left_out"] == [*replaced, "fc.weight", "fc.bias"]
    lambdas = [name for name, module in ours.named_modules() if isinstance(module, LambdaLayer)]
    made = {name for name in own if name.startswith((*lambdas, "fc")) and "num_batches_tracked" not in name}
    assert set(done["made_anew"]) == made
    for name in done["taken"]:
        assert torch.equal(own[name], given[name]), name
    assert told(done) == [
        "weights of there: stem, c2, c3, 19 of 31 tensors of c4, 33 of 57 tensors of c5",
        "left out: layer3.*.conv2, layer4.*.conv2, fc",
        "made anew: layer3.*.conv2, layer4.*.conv2, fc",
    ]


@pytest.mark.parametrize("prefixes", [("module.",), ("_orig_mod.",), ("module._orig_mod.",), ("model.",)])
def test_prefixes_that_wrappers_leave_are_dropped(prefixes: tuple[str, ...]) -> None:
    theirs, ours = network(seed=1), network()
    state = {f"{prefixes[0]}{name}": value for name, value in theirs.state_dict().items()}
    done = transfer(Weights("there", {"n_averaged": torch.tensor(3), "epoch": 5, **state}), ours, CLASSES)
    assert done["made_anew"] == done["left_out"] == []
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert unwrapped({"fc.weight": torch.ones(1)}, ours.state_dict()) == {"fc.weight": torch.ones(1)}


def test_weights_of_which_nothing_fits_are_refused() -> None:
    for state in ({}, {"encoder.weight": torch.ones(3, 3)}, {"conv1.weight": torch.ones(5)}):
        with pytest.raises(InputError, match="^init_from: nothing of there fits this network; it holds .*conv1, bn1"):
            transfer(Weights("there", state), network(), CLASSES)
    odd = network(seed=1).state_dict() | {"layer3.0.conv2.embedding": torch.ones(5, 5, 16, 1)}
    absolute = network(position="absolute")
    with pytest.raises(InputError, match="^init_from: there: weights do not fit: layer3.0.conv2.embedding has 5 pos"):
        transfer(Weights("there", odd), absolute, CLASSES)


def test_what_is_frozen_as_it_was_drawn_is_told() -> None:
    assert told_of_start(None, ()) == []
    assert told_of_start(None, ("stem", "c2")) == ["frozen, though drawn at random: stem, c2"]
    done = {"from": "a.pt", "epochs": 1, "taken": ["conv1.weight"], "resized": [], "left_out": []}
    done["made_anew"] = ["layer1.0.conv2.weight", "layer2.0.conv2.weight", "fc.weight"]
    lines = told_of_start(done, ("stem", "c2"))
    assert lines[0] == "weights of a.pt after 1 epoch: stem"
    assert lines[-1] == "frozen, though drawn at random: layer1.*.conv2"
    assert told_of_start(done, ("stem",)) == told(done)
