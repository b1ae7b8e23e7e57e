import copy
import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models.resnet import BasicBlock, Bottleneck

import resnet_lambda
from acceleration.fast_layers import folded
from lambda_layer import LambdaLayer
from model_preparation import build_model
from resnet import BASIC, DEPTHS, POOLED, PooledBlock, build_resnet, stage_sizes
from resnet_lambda import PooledLambdaLayer, build_lambda_resnet
from user_input import UserInput

VARIANTS = """resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
wide_resnet50_2 wide_resnet101_2""".split()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(**settings) -> nn.Module:
    with torch.device("meta"):
        return build_model(UserInput(dataset="digits", **settings))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_baseline_is_torchvisions_resnet(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    ours = build_resnet(depth).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_parameter_counts_with_ten_classes() -> None:
    assert count(on_meta(model="baseline")) == 23_528_522  # torchvision's 25,557,032 less 990 logits of 2,049 numbers
    assert 12.8e6 <= count(on_meta(model="lambda")) <= 12.9e6


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_counts_the_layers(depth: int) -> None:
    blocks = sum(DEPTHS[depth])
    kind, layers = (Bottleneck, 3)
    if depth in (*POOLED, *BASIC):
        kind, layers = (PooledBlock if depth in POOLED else BasicBlock), 2
    assert abs(layers * blocks + 2 - depth) <= 2  # the paper rounds 272 to 270 and 419 to 420
    model = on_meta(depth=depth)
    assert sum(isinstance(module, kind) for module in model.modules()) == blocks
    assert sum(isinstance(module, LambdaLayer) for module in model.modules()) == blocks


@pytest.mark.parametrize("stages", ["".join(word) for word in itertools.product("CL", repeat=4)])
def test_a_stage_word_says_where_the_lambda_layers_are(stages: str) -> None:
    model = on_meta(depth=26, stages=stages)
    for letter, stage in zip(stages, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True):
        kind = LambdaLayer if letter == "L" else nn.Conv2d
        assert all(isinstance(bottleneck.conv2, kind) for bottleneck in stage)


def test_the_stage_word_without_lambdas_is_the_baseline() -> None:
    torch.manual_seed(1)
    hybrid = build_lambda_resnet(26, stages="CCCC", num_classes=3)
    torch.manual_seed(1)
    baseline = build_resnet(26, num_classes=3)
    for (name, one), (other_name, other) in zip(
        hybrid.state_dict().items(), baseline.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "stem", "expected"),
    [
        ((32, 32), "imagenet", [(8, 8), (8, 8), (4, 4), (2, 2)]),
        ((32, 32), "cifar", [(32, 32), (32, 32), (16, 16), (8, 8)]),
        ((224, 224), "imagenet", [(56, 56), (56, 56), (28, 28), (14, 14)]),
        ((45, 30), "imagenet", [(12, 8), (12, 8), (6, 4), (3, 2)]),
    ],
)
@pytest.mark.parametrize("stages", ["LLLL", "CCCC"])
def test_stage_sizes_are_the_maps_that_enter(size: tuple, stem: str, expected: list, stages: str) -> None:
    assert stage_sizes(size, stem) == expected
    model = build_lambda_resnet(26, stages=stages, image_size=size, stem=stem, num_classes=2).eval()
    seen = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *size)).shape == (1, 2)
    assert seen == expected


def test_a_strided_lambda_layer_is_pooled_over_its_neighbours() -> None:
    model = build_lambda_resnet(26, image_size=32, num_classes=2).eval()
    pooled = model.layer2[0].conv2
    assert isinstance(pooled, PooledLambdaLayer)
    assert not any(isinstance(block.conv2, PooledLambdaLayer) for block in [*model.layer1, model.layer2[1]])
    x = torch.randn(2, 128, 8, 8)
    with torch.no_grad():
        result, whole = pooled(x), LambdaLayer.forward(pooled, x)
    assert result.shape == (2, 128, 4, 4)
    torch.testing.assert_close(result[:, :, 1, 2], whole[:, :, 1:4, 3:6].mean((2, 3)))
    torch.testing.assert_close(result[:, :, 0, 0], whole[:, :, :2, :2].sum((2, 3)) / 9)  # padded with zeros


@pytest.mark.parametrize("name", VARIANTS)
def test_named_variants_are_torchvisions_but_for_the_lambda_stages(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
        convolutions = getattr(resnet_lambda, f"{name}_lambda")(stages="CCCC")
        hybrid = getattr(resnet_lambda, f"{name}_lambda")(stages="CCCL", scope=7)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in convolutions.state_dict().items()} == shapes
    ours = {key: value.shape for key, value in hybrid.state_dict().items() if ".conv2." not in key}
    assert ours.items() <= shapes.items()
    assert {key for key in shapes.keys() - ours.keys() if "layer4" not in key} == {
        key for key in shapes if ".conv2." in key and "layer4" not in key
    }


def test_residual_branches_start_at_zero() -> None:
    for model in ("lambda", "baseline"):
        network = build_model(UserInput(model=model, depth=26, dataset="digits"))
        blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]
        assert all((block.bn3.weight == 0).all() for block in blocks)
        ones = build_model(UserInput(model=model, depth=26, dataset="digits", zero_init_residual=False))
        assert all((block.bn3.weight == 1).all() for block in ones.modules() if isinstance(block, Bottleneck))


def test_a_fresh_network_without_zero_residuals_is_finite_once_its_norms_have_seen_images() -> None:
    model = build_lambda_resnet(26, image_size=32, width_per_group=16, zero_init_residual=False).eval()
    images = torch.randn(8, 3, 32, 32)
    assert not model(images).isfinite().all()  # else the docstring has nothing to warn of
    trained, seen = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    for _ in range(16):
        optimizer.zero_grad()
        F.cross_entropy(trained(images), torch.arange(8) % 3).backward()
        optimizer.step()
    update_bn([images], seen)
    for network in (trained, seen):
        assert network.eval()(images).abs().max() < 100


def test_every_batch_norm_has_the_momentum_of_the_settings() -> None:
    model = on_meta(depth=26, bn_momentum=0.03)
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(norms) == 1 + 4 + 8 * (3 + 2)  # stem, downsamplings, three a bottleneck and two a lambda layer
    assert {norm.momentum for norm in norms} == {0.03}


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_shared_embeddings_are_one_parameter(position: str) -> None:
    options = {"image_size": 32, "num_classes": 2, "position": position}
    model = build_lambda_resnet(26, share_embeddings=True, **options)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        tables = {id(block.conv2.embedding) for block in stage}
        same_size = position == "relative" or stage is model.layer1
        assert len(tables) == (1 if same_size else 2)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
    apart = build_lambda_resnet(26, **options)
    assert count(model) < count(apart)


def test_a_gradient_reaches_every_parameter() -> None:
    # at 64 pixels the last map has 2×2 positions; over a single one the softmax of the keys is constant
    model = build_lambda_resnet(26, image_size=64, num_classes=2, zero_init_residual=False)
    model(torch.randn(2, 3, 64, 64)).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


SMALL = {"depth": 26, "stages": "CCCL", "image_size": 32, "num_classes": 3}


@pytest.mark.parametrize("kind", ["state dict", "path", "string"])
def test_a_network_starts_from_weights(kind: str, tmp_path: Path) -> None:
    model = build_lambda_resnet(**SMALL)
    model(torch.randn(2, 3, 32, 32))  # moves the statistics
    weights = model.state_dict()
    if kind != "state dict":
        torch.save(weights, tmp_path / "weights.pt")
        weights = tmp_path / "weights.pt" if kind == "path" else str(tmp_path / "weights.pt")
    twin = resnet_lambda.resnet26_lambda(
        **{key: value for key, value in SMALL.items() if key != "depth"}, weights=weights
    )
    for key, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value)
    with torch.no_grad():  # copies: training one does not train the other
        model.fc.weight.zero_()
    assert twin.fc.weight.any()


def test_weights_of_another_network_are_named() -> None:
    other = build_lambda_resnet(**{**SMALL, "num_classes": 5}, scope=7).state_dict()
    del other["bn1.weight"], other["bn1.bias"]
    other |= {"head.0": torch.zeros(1), "head.1": {}, "head.2": None, "head.3": 1}
    says = (
        "weights do not fit: 2 missing (bn1.weight, bn1.bias); "
        "4 not of this network (head.0, head.1, head.2, …); "
        "4 of another shape (layer4.0.conv2.embedding (16, 1, 7, 7), not (16, 1, 3, 3), "
        "layer4.1.conv2.embedding (16, 1, 7, 7), not (16, 1, 1, 1), fc.weight (5, 2048), not (3, 2048), …)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        build_lambda_resnet(**SMALL, weights=other)


def test_weights_that_are_no_tensors_of_the_network_are_named() -> None:
    own = build_lambda_resnet(**SMALL).state_dict()
    with pytest.raises(ValueError, match=r"1 not of this network \(0\)"):
        build_lambda_resnet(**SMALL, weights=own | {0: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 of another shape \(bn1.num_batches_tracked None, not \(\)\)"):
        build_lambda_resnet(**SMALL, weights=own | {"bn1.num_batches_tracked": 3})
    with pytest.raises(ValueError, match="of another shape"):
        build_lambda_resnet(**{**SMALL, "position": "absolute", "scope": None}, weights=own, resize_weights=True)


def test_a_narrow_network_is_pickled() -> None:
    options = {"width": 16, "num_classes": 3, "zero_init_residual": False}
    model = build_lambda_resnet(18, stages="CCCL", image_size=32, **options).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))


@pytest.mark.parametrize("size", [np.int64(32), [32, 32], np.array([32, 32])], ids=["a number", "a list", "an array"])
def test_image_sizes_may_be_numpys(size: object) -> None:
    model = build_lambda_resnet(10, image_size=size, stem="cifar", stages="CCCL", width=8, num_classes=3)
    assert model.layer4[0].conv2.input_size == (4, 4)


class Program:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"weights: .*weights.pt cannot be read \(FileNotFoundError"),
        (b"no network", r"weights: .*weights.pt cannot be read \("),
        (Program(), r"weights: .*weights.pt cannot be read \(UnpicklingError"),
        (torch.zeros(3), "weights.pt holds a Tensor; it must hold a state dict"),
        ({"model": {"fc.bias": torch.zeros(3)}}, r"1 not of this network \(model\)"),
    ],
    ids=["no file", "not PyTorch's", "a program", "a tensor", "a checkpoint"],
)
def test_files_without_weights_are_refused(content: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=says):
        build_lambda_resnet(**SMALL, weights=path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 20}, "depth: 20 is not allowed; takes one of 10, 18, 26, 34, 50"),
        ({"depth": 18, "groups": 32}, "depth: 18 has basic blocks, which take neither groups"),
        ({"depth": 34, "replace_stride_with_dilation": (False, True, True)}, "depth: 34 has basic blocks"),
        ({"stem": "vgg"}, "stem: vgg is not allowed; takes one of imagenet, compact, cifar"),
        ({"stages": "CCC"}, "stages: CCC is not allowed"),
        ({"stages": "CCcL"}, "stages: CCcL is not allowed"),
    ],
)
def test_refusals(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_lambda_resnet(**options)


@pytest.mark.parametrize("stages", ["CCCC", "CCLL"])
def test_a_narrower_network_has_its_channels_in_proportion(stages: str) -> None:
    wide, narrow = (
        build_lambda_resnet(26, stages=stages, image_size=32, num_classes=10, width=width) for width in (64, 32)
    )
    for ours, theirs in zip(narrow.layer4[1].children(), wide.layer4[1].children(), strict=True):
        if isinstance(theirs, nn.Conv2d):
            assert (ours.in_channels, ours.out_channels) == (theirs.in_channels // 2, theirs.out_channels // 2)
    assert (narrow.conv1.out_channels, narrow.layer1[0].conv1.in_channels, narrow.fc.in_features) == (64, 64, 1024)
    assert narrow.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with_64 = build_lambda_resnet(26, stages=stages, image_size=32, num_classes=10)
    assert with_64.state_dict().keys() == narrow.state_dict().keys()


@pytest.mark.parametrize("share", [False, True])
def test_a_basic_blocks_second_convolution_makes_way_at_the_halved_map(share: bool) -> None:
    """Worked out by hand: 32 pixels, stem compact; c2 has maps of 16 a side, c5 of 2; the first convolution halves."""
    model = build_lambda_resnet(18, stages="LCLL", image_size=32, stem="compact", width=32, share_embeddings=share)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LambdaLayer)}
    assert list(layers) == [f"layer{stage}.{block}.conv2" for stage in (1, 3, 4) for block in (0, 1)]
    assert [layer.input_size for layer in layers.values()] == [(side, side) for side in (16, 16, 4, 4, 2, 2)]
    assert not any(isinstance(layer, PooledLambdaLayer) for layer in layers.values())
    assert [block[0].conv1.stride for block in (model.layer1, model.layer3, model.layer4)] == [(1, 1), (2, 2), (2, 2)]
    assert len({id(layer.embedding) for layer in layers.values()}) == (3 if share else 6)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_pooled_blocks_are_what_their_parts_give_one_by_one(stem: str) -> None:
    """Worked out by hand: 32 pixels, stem cifar; c2 has maps of 32 a side, c3 of 16, and each pool comes first."""
    model = build_lambda_resnet(10, stages="CCLL", image_size=32, stem=stem, width=8, num_classes=3)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LambdaLayer)}
    sides = {"imagenet": (2, 1), "cifar": (8, 4)}[stem]
    assert {name: layer.input_size for name, layer in layers.items()} == {
        f"layer{stage}.0.conv2": (side, side) for stage, side in zip((3, 4), sides, strict=True)
    }
    x = images = torch.randn(4, 3, 32, 32)
    x = model.conv1(x)
    assert x.shape == (4, 8, *[{"imagenet": 16, "cifar": 32}[stem]] * 2)
    x = F.relu(F.batch_norm(x, None, None, training=True))
    x = F.max_pool2d(x, 3, 2, 1) if stem == "imagenet" else x
    for number, (block,) in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        x = F.conv2d(x, block.conv1.weight, padding=1)
        x = F.max_pool2d(x, 2) if number else x
        x = F.relu(F.batch_norm(x, None, None, training=True))
        branch = block.conv2(x) if number > 1 else F.conv2d(x, block.conv2.weight, padding=1)
        x = x + F.relu(F.batch_norm(branch, None, None, training=True))
    torch.testing.assert_close(model(images), model.fc(x.mean((2, 3))), atol=1e-4, rtol=1e-4)


def test_a_pooled_block_halves_odd_maps_as_the_others_do() -> None:
    model = build_lambda_resnet(10, stages="LLLL", image_size=(45, 34), stem="cifar", width=8, num_classes=3)
    shapes = [layer.input_size for layer in model.modules() if isinstance(layer, LambdaLayer)]
    assert shapes == [(45, 34), (23, 17), (12, 9), (6, 5)]
    assert model(torch.randn(2, 3, 45, 34)).shape == (2, 3)
    with pytest.raises(ValueError, match="depth: 10 has pooled blocks, which take neither groups"):
        build_resnet(10, groups=2)


def test_a_folded_basic_block_gives_the_same_logits() -> None:
    options = {"stem": "compact", "width": 8, "num_classes": 10, "zero_init_residual": False}
    model = build_lambda_resnet(18, stages="CCLC", image_size=32, **options)
    update_bn([torch.randn(8, 3, 32, 32)], model)  # running statistics that are not 0 and 1
    images, quick = torch.randn(4, 3, 32, 32), folded(model)
    with torch.no_grad():
        torch.testing.assert_close(quick(images), model.eval()(images), atol=1e-4, rtol=1e-4)
    left = {name for name, module in quick.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == {
        f"layer3.{block}.{norm}" for block in (0, 1) for norm in ("bn2", "conv2.norm_queries", "conv2.norm_values")
    }
