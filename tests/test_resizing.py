"""Networks and layers that go on at another image size, and torchvision's options of a ResNet."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lambda_layer import LambdaLayer, LambdaLayer1d
from resnet import STEMS, build_resnet, stage_sizes
from resnet_lambda import build_lambda_resnet, resize


def lambda_layers(model: nn.Module) -> list[LambdaLayer]:
    return [module for module in model.modules() if isinstance(module, LambdaLayer)]


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_resized_embedding_is_the_same_parameter_and_trains_on(position: str) -> None:
    layer = LambdaLayer(8, input_size=4, position=position, heads=2, key_depth=4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    loss = layer(torch.randn(2, 8, 4, 4)).square().sum()  # as long as it is there, so is the graph of the old shape
    loss.backward()
    optimizer.step()
    embedding = layer.embedding
    layer.resize_embedding(6)
    assert layer.embedding is embedding
    assert embedding.grad is None
    optimizer.state.pop(embedding, None)
    before = embedding.detach().clone()
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert embedding.grad.shape == embedding.shape
    optimizer.step()
    assert not torch.equal(embedding, before)


def pairs(size: tuple[int, int]) -> torch.Tensor:
    """E[n, m] = row n + 10 · column n + 100 · row m + 1000 · column m, each counted from 0 to 1; k = 1, u = 2."""
    rows, columns = (torch.linspace(0, 1, length) for length in size)
    n = (rows[:, None] + 10 * columns).flatten()
    return (n[:, None] + 100 * n)[:, :, None, None] * torch.tensor([[1.0, 2.0]])


@pytest.mark.parametrize("size", [(6, 4), (3, 5), (2, 2)])
def test_what_is_linear_in_rows_and_columns_stays_so_when_an_absolute_embedding_is_resized(size: tuple) -> None:
    table = nn.Parameter(pairs((4, 6)))
    options = {"position": "absolute", "key_depth": 1, "intra_depth": 2, "embedding": table}
    layers = [LambdaLayer(4, input_size=(4, 6), **options) for _ in range(2)]
    for to in (size, (6, 4), size):  # (6, 4) and (4, 6) have as many positions
        for layer in layers:
            layer.resize_embedding(to)
        torch.testing.assert_close(table.detach(), pairs(to))


def test_sizes_may_be_numpys() -> None:
    assert LambdaLayer(8, input_size=np.int64(8), heads=2).input_size == (8, 8)
    assert LambdaLayer(8, input_size=np.array([3, 5]), heads=2).input_size == (3, 5)


@pytest.mark.parametrize(("size", "said"), [("32", "'32'"), (32.0, "32.0"), (None, "None"), ((4, -1), r"\(4, -1\)")])
def test_a_size_is_refused_by_the_name_that_the_caller_knows(size, said: str) -> None:
    with pytest.raises(ValueError, match=f"^image_size is {said}; it must be 2 positive whole number"):
        build_lambda_resnet(10, image_size=size)
    with pytest.raises(ValueError, match=f"^new_size is {said}; it must be 1 positive whole number"):
        LambdaLayer1d(4, input_size=3, heads=2).resize_embedding(size)
    model = build_lambda_resnet(10, image_size=64, stages="CCCL", num_classes=3)
    with pytest.raises(ValueError, match=f"^image_size is {said}; it must be 2 positive whole number"):
        resize(model, size)
    sizes = [layer.input_size for layer in lambda_layers(model)]
    model(torch.randn(2, 3, 32, 32))  # a smaller one, which no hook of the refused call may fit the layers to
    assert [layer.input_size for layer in lambda_layers(model)] == sizes


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_network_is_resized_with_its_embeddings(share: bool, position: str) -> None:
    options = {"depth": 26, "num_classes": 3, "share_embeddings": share, "position": position}
    small, large = (build_lambda_resnet(image_size=side, **options) for side in (32, (64, 48)))
    names = [id(parameter) for parameter in small.parameters()]
    optimizer = torch.optim.Adam(small.parameters())
    loss = small.train()(torch.randn(2, 3, 32, 32)).sum()  # its graph stays, as in a loop that goes on
    loss.backward()
    optimizer.step()
    mean = small.bn1.running_mean.clone()
    expected = {  # by hand: linearly, ends on ends
        name: F.interpolate(layer.embedding.detach().flatten(0, 1)[None], large_layer.embedding.shape[2:],
                            mode="bilinear", align_corners=True)[0]
        for (name, layer), (_, large_layer) in zip(small.named_modules(), large.named_modules(), strict=True)
        if isinstance(layer, LambdaLayer) and position == "relative"
    }  # fmt: skip
    resize(small, (64, 48), optimizer)
    assert [id(parameter) for parameter in small.parameters()] == names
    assert small.training
    assert torch.equal(small.bn1.running_mean, mean)
    assert [layer.input_size for layer in lambda_layers(small)] == [layer.input_size for layer in lambda_layers(large)]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (small, large)]
    assert shapes[0] == shapes[1]
    for name, layer in small.named_modules():
        if name in expected:
            torch.testing.assert_close(layer.embedding.detach().flatten(0, 1), expected[name])
    small(torch.randn(2, 3, 64, 48)).sum().backward()
    optimizer.step()  # with what it kept of the old shapes, it would not go


def test_a_network_of_local_scopes_stays_as_it_is() -> None:
    model = build_lambda_resnet(26, scope=3, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    resize(model, 96)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_image_size_are_resized_on_the_way_at_ones_wish() -> None:
    options = {"depth": 26, "num_classes": 3, "stages": "CCLL"}
    given = build_lambda_resnet(image_size=32, **options)
    with pytest.raises(ValueError, match=r"weights do not fit: .*embedding \(16, 1, .*, not "):
        build_lambda_resnet(image_size=64, weights=given.state_dict(), **options)
    model = build_lambda_resnet(image_size=64, weights=given.state_dict(), resize_weights=True, **options)
    torch.testing.assert_close(dict(model.state_dict()), dict(resize(given, 64).state_dict()))
    absolute = build_lambda_resnet(image_size=32, position="absolute", **options)
    model = build_lambda_resnet(
        image_size=64, position="absolute", weights=absolute.state_dict(), resize_weights=True, **options
    )
    torch.testing.assert_close(dict(model.state_dict()), dict(resize(absolute, 64).state_dict()))


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("compact", 16), ("cifar", 32)])
def test_stems(stem: str, side: int) -> None:
    seen = []
    model = build_resnet(26, stem=stem, num_classes=3)
    hook = model.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.randn(2, 3, 32, 32))
    hook.remove()
    assert seen == [(2, 64, side, side)]
    assert stage_sizes((32, 32), stem)[0] == (side, side)
    assert set(STEMS) == {"imagenet", "compact", "cifar"}
    assert stage_sizes((33, 31), "compact") == [(17, 16), (17, 16), (9, 8), (5, 4)]


def test_a_dilation_in_place_of_a_stride_keeps_the_map_and_the_reach_of_a_scope() -> None:
    options = {"num_classes": 3, "replace_stride_with_dilation": (False, True, True)}
    convolutional = build_resnet(26, **options)
    model = build_lambda_resnet(26, scope=3, **options)
    maps = []
    for network in (convolutional, model):
        hooks = [stage.register_forward_hook(lambda _, __, y: maps.append(y.shape))
                 for stage in (network.layer2, network.layer3, network.layer4)]  # fmt: skip
        network(torch.randn(2, 3, 64, 64))
        for hook in hooks:
            hook.remove()
    assert maps[:3] == maps[3:]
    for plain, layer in zip(
        (block.conv2 for stage in (convolutional.layer3, convolutional.layer4) for block in stage),
        (block.conv2 for stage in (model.layer3, model.layer4) for block in stage),
        strict=True,
    ):
        assert layer.scope == 1 + 2 * plain.dilation[0]  # from the first tap of three to the last
    whole = build_lambda_resnet(26, image_size=64, **options)
    assert [block.conv2.input_size for block in whole.layer4] == [(8, 8), (8, 8)]
    whole(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("build", [build_resnet, build_lambda_resnet])
def test_norm_layer_makes_every_norm(build) -> None:
    norms = {"norm_layer": lambda channels: nn.GroupNorm(8, channels), "zero_init_residual": False}
    model = build(26, num_classes=3, **norms)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    one, other = torch.randn(2, 1, 3, 64, 64)
    torch.testing.assert_close(model(torch.cat([one, other]))[:1], model(one))  # each image is normalised by itself


def test_a_norm_layer_that_does_not_fit_a_lambda_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm_layer: no norm of 16 channels, as norm_values has \(.*divisible"):
        build_lambda_resnet(26, norm_layer=lambda channels: nn.GroupNorm(32, channels))


def test_device_and_type() -> None:
    layer = LambdaLayer(8, input_size=4, heads=2, position_bias=True, device="meta", dtype=torch.bfloat16)
    kinds = {(value.device.type, value.dtype) for value in layer.state_dict().values() if value.is_floating_point()}
    assert kinds == {("meta", torch.bfloat16)}
    assert LambdaLayer.make_embedding(input_size=4, dtype=torch.float64).dtype == torch.float64
