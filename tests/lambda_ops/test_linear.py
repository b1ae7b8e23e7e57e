"""The product gives what the plain one gives."""

import pytest
import torch
from torch import nn

from benchmarks.measuring import peak_memory
from lambda_ops.linear import linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5), (0, 5)])
def test_linear_equals_plain(shape: tuple, bias: bool) -> None:
    plain = nn.Linear(5, 7, bias=bias)
    x = torch.randn(shape)
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = plain(given[0]), linear(given[1], plain.weight, plain.bias)
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(y.sum(), [g, *plain.parameters()]) for y, g in zip(outputs, given, strict=True)]
    torch.testing.assert_close(*gradients)


def test_linear_is_differentiated_twice() -> None:
    plain, x = nn.Linear(5, 7), torch.randn(4, 5, requires_grad=True)
    seconds = []
    for y in (plain(x), linear(x, plain.weight, plain.bias)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), [x, *plain.parameters()]))
    torch.testing.assert_close(*seconds)


def test_a_product_without_gradients_does_not_copy_the_weights_for_each_image() -> None:
    x = torch.randn(64, 4, 4, 64, dtype=torch.bfloat16)[:, ::2, ::2]
    weight = torch.randn(256, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        held = peak_memory(lambda: linear(x, weight), CPU)
    assert held < 1.0  # MiB: x and y are 0.16, and the weights for 64 images and two rows 4
