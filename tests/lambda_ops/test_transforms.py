"""Every way under the transforms of torch.func, forward-mode differentiation and changes in place."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from layer_tools import SMALL_WAYS, perturb
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from lambda_layer import LambdaLayer, LambdaLayer1d
from lambda_ops.fourier import FourierOrder, Hankel
from lambda_ops.linear import OneDNNProduct
from lambda_ops.orders import AttentionOrder
from lambda_ops.rule import Way

WAYS = [None, *SMALL_WAYS, Way("attention", (3, 2))]


def prepared(way: Way | None, **arguments) -> LambdaLayer:
    layer = perturb(LambdaLayer(4, scope=3, intra_depth=2, **arguments)).eval()
    layer._way = way
    return layer


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_each_sample_are_those_of_a_loop(way) -> None:
    layer, x = prepared(way), torch.randn(3, 4, 4, 5)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(layer, parameters, (image[None],)).sin().sum()

    by_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for index, image in enumerate(x):
        expected = torch.autograd.grad(layer(image[None]).sin().sum(), list(parameters.values()))
        alone = grad(loss)(parameters, image)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(by_sample[name][index], gradient, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(alone[name], gradient, atol=1e-3, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_jacobians_are_those_of_backward_passes(way) -> None:
    layer, x = prepared(way).double(), torch.randn(2, 4, 3, 4, dtype=torch.float64)

    def sums(x: Tensor) -> Tensor:
        return layer(x).sin().sum((2, 3))

    expected = torch.autograd.functional.jacobian(sums, x)
    torch.testing.assert_close(jacrev(sums)(x), expected)
    torch.testing.assert_close(jacfwd(sums)(x), expected)
    tangent = torch.randn_like(x)
    along = (expected * tangent).sum((2, 3, 4, 5))
    torch.testing.assert_close(jvp(sums, (x,), (tangent,))[1], along)
    with forward_ad.dual_level(), torch.no_grad():
        torch.testing.assert_close(forward_ad.unpack_dual(sums(forward_ad.make_dual(x, tangent))).tangent, along)


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_batched_gradients_are_those_of_single_ones(way) -> None:
    layer, x = prepared(way), torch.randn(2, 4, 4, 5, requires_grad=True)
    y = layer(x)
    grads = torch.randn(3, *y.shape)
    (batched,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in grads]
    torch.testing.assert_close(batched, torch.stack(single), rtol=1e-4, atol=1e-5)


def test_gradients_in_frequencies_keep_their_precision_within_autocast() -> None:
    """Those that are to be differentiated, too: both are float32, since sums over a row overflow in half precision."""
    inverse = torch.randn(4, 6)  # (w, 2·f), for w = 4, f = 3; then b = 2, rows = 3, h = 2, k = 3, u = 1, v = 2
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 12, 2, 3), (3, 6, 4), (3, 18, 6))]
    y = FourierOrder.apply(inverse, *inputs)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    for create_graph in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            within = torch.autograd.grad(y, inputs, grad, retain_graph=True, create_graph=create_graph)
        assert all(one.requires_grad == create_graph for one in within)
        torch.testing.assert_close([one.detach() for one in within], list(expected), rtol=1e-4, atol=1e-4)


def test_an_ensemble_without_gradients() -> None:
    layers, x = [prepared(None) for _ in range(3)], torch.randn(2, 4, 4, 5)
    stacked, buffers = torch.func.stack_module_state(layers)
    with torch.no_grad():
        y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(stacked, buffers)
        for index, layer in enumerate(layers):
            torch.testing.assert_close(y[index], layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_output_is_changed_in_place(way, content: bool) -> None:
    layer, x = prepared(way, content=content), torch.randn(2, 4, 4, 5)
    changed = nn.functional.relu_(layer(x))
    expected = layer(x).relu()
    torch.testing.assert_close(changed, expected)
    for one, other in zip(
        torch.autograd.grad(changed.sum(), list(layer.parameters())),
        torch.autograd.grad(expected.sum(), list(layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("layer_class", "size"), [(LambdaLayer, (1, 1)), (LambdaLayer, (3, 4)), (LambdaLayer1d, (5,))])
@pytest.mark.parametrize("way", [way for way in SMALL_WAYS if "a" in way.name or way.name == "fourier"])
def test_no_function_returns_a_view(layer_class, size, way, monkeypatch) -> None:
    returned = []

    def watched(apply: Callable, *arguments: object) -> Tensor:
        returned.append(apply(*arguments))
        return returned[-1]

    for function in (OneDNNProduct, AttentionOrder, FourierOrder, Hankel):
        monkeypatch.setattr(function, "apply", partial(watched, function.apply))
    layer = layer_class(4, scope=3, content=False)
    layer._way = way._replace(tile=way.tile[: len(size)])
    layer(torch.randn(2, 4, *size))
    assert returned
    assert not any(output._is_view() for output in returned)
