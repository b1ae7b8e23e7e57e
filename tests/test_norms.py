"""The layer's norms are those of maps: recipes find them, and a norm in their place gives what it gives on a map."""

import copy

import pytest
import torch
from layer_tools import assert_all_close, perturb, value_and_gradients
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.layer import Conv3dLambda
from lambda_layer import LambdaLayer, LambdaLayer1d, LambdaLayer3d

NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(4, channels),
    "one group": lambda channels: nn.GroupNorm(1, channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "layer": LayerNorm2d,
    "identity": lambda channels: nn.Identity(),
    "frozen": FrozenBatchNorm2d,
    "fixed": lambda channels: nn.BatchNorm2d(channels, affine=False),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_another_norm_gives_what_it_gives_on_a_map(norm, memory_format) -> None:
    layer = LambdaLayer(8, 12, scope=3, intra_depth=2)
    layer.norm_queries, layer.norm_values = norm(64), norm(6) if norm is not NORMS["group"] else nn.GroupNorm(3, 6)
    for tensor in [*layer.norm_queries.parameters(), *layer.norm_values.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    layer = layer.double()
    plain = Conv3dLambda(copy.deepcopy(layer))
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    for training in (True, False):
        results = [value_and_gradients(module.train(training), module, x) for module in (layer, plain)]
        assert_all_close(*results, 1e-10)
    for one, other in zip(layer.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("layer_class", "norm", "shape"),
    [
        (LambdaLayer1d, nn.BatchNorm1d, (2, 8, 6)),
        (LambdaLayer, nn.BatchNorm2d, (2, 8, 6, 5)),
        (LambdaLayer3d, nn.BatchNorm3d, (2, 8, 3, 2, 4)),
    ],
)
def test_a_norm_belongs_to_the_dimension_and_is_given_a_map(layer_class, norm, shape) -> None:
    layer, seen, x = layer_class(8, scope=3), [], torch.randn(shape)
    expected = layer(x)
    for module in (layer.norm_queries, layer.norm_values):
        assert type(module) is norm
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.testing.assert_close(layer(x), expected)
    assert [given.shape[2:] for given in seen] == [x.shape[2:]] * 2
    assert all(given.movedim(1, -1).is_contiguous() for given in seen)  # channels last


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (3, 4)])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_gradient_through_the_norm_is_right_for_narrow_maps(size: tuple[int, int], batch: int) -> None:
    """PyTorch's own goes wrong where the strides of a map and its gradient say different things of an axis of 1."""
    layer = perturb(LambdaLayer(6, 8, input_size=size, position="absolute", heads=2, key_depth=4)).double()
    if batch == 1 and size == (1, 1):
        layer.eval()  # one value has no variance
    x = torch.randn(batch, 6, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    y = layer(x)
    for strided in (torch.ones(()).double().expand_as(y), y.detach().contiguous(), y.detach().mT.contiguous().mT):
        (one,) = torch.autograd.grad(y, x, strided, retain_graph=True)
        (other,) = torch.autograd.grad(y, x, strided.clone(memory_format=torch.channels_last), retain_graph=True)
        torch.testing.assert_close(one, other)


def test_recipes_for_batch_norms_of_maps_find_them() -> None:
    layer = LambdaLayer(8, scope=3)
    layer(torch.randn(4, 8, 5, 5))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer)).eval()
    assert isinstance(synchronised.norm_values, nn.SyncBatchNorm)
    frozen = copy.deepcopy(layer)
    for name, norm in list(frozen.named_children()):
        if isinstance(norm, nn.BatchNorm2d):
            twin = FrozenBatchNorm2d(norm.num_features)
            twin.load_state_dict(norm.state_dict())
            setattr(frozen, name, twin)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in frozen.modules())
    with torch.autocast("cpu", torch.bfloat16):  # in which frozen norms give float32
        x = torch.randn(2, 8, 4, 4)
        assert frozen(x).dtype == layer.eval()(x).dtype == torch.bfloat16
        torch.testing.assert_close(frozen(x), layer(x), rtol=0.05, atol=0.05)
    x, layer = torch.randn(2, 8, 4, 4), layer.eval()
    for other in (synchronised, frozen.train()):
        torch.testing.assert_close(other(x), layer(x))
