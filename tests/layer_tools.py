"""The ways of computing a layer, and comparing what layers give."""

import torch
from torch import nn

from lambda_ops.rule import Way

WHOLE = (64, 64, 64)  # a tile as long as any map in these tests
TILES = [WHOLE, (1, 2, 3), (2, 4, 1), (3, 3, 2), (1, 64, 64)]


def ways(axes: int, *, only_whole: bool = False) -> list[Way]:
    tiled = [Way(name, tile[:axes]) for name in ("attention", "lambda") for tile in TILES]
    if only_whole:
        return [way for way in tiled if way.tile == WHOLE[:axes]]
    return [*tiled, Way("convolution"), Way("fourier"), Way("fft")]


def perturb(layer: nn.Module) -> nn.Module:
    """Norms and biases away from their initial 1 and 0, so that a dropped weight or bias shows."""
    for norm in (layer.norm_queries, layer.norm_values):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    if layer.position_bias is not None:
        nn.init.uniform_(layer.position_bias, -1, 1)
    return layer


def value_and_gradients(function, layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape).cos()
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


def assert_all_close(actual, expected, tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        scale = max(1.0, e.abs().max().item())
        assert (a.double() - e.double()).abs().max().item() <= tolerance * scale


SMALL_WAYS = [
    Way("attention", (2, 2)),
    Way("attention", WHOLE[:2]),
    Way("lambda", (2, 2)),
    Way("convolution"),
    Way("fourier"),
    Way("fft"),
]
