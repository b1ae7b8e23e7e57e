"""What the cases of `sweep.py` share: their register, a small network, and how to look at what comes out."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from acceleration.fast_layers import quicken
from lambda_layer import LambdaLayer
from resnet_lambda import build_lambda_resnet

CLASSES, SIDE = 3, 32
SETTINGS = {"stem": "compact", "image_size": SIDE, "num_classes": CLASSES}
PROJECTIONS = ("to_queries", "to_values")
CASES: dict[Callable[[], None], str] = {}  # each with the package that it needs


def case(package: str = "torch") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Put a function among the cases; its name is what it shows."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        CASES[function] = package
        return function

    return register


def network(**options: object) -> nn.Module:
    """A small λ-ResNet in evaluation mode, whose norms have seen images and whose branches count."""
    torch.manual_seed(0)
    model = build_lambda_resnet(26, **SETTINGS, **options)
    for name, weight in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(weight, 0.2)
    update_bn([images(16)], model)
    return quicken(model).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE)


def lambda_layers(model: nn.Module) -> list[LambdaLayer]:
    return [module for module in model.modules() if isinstance(module, LambdaLayer)]


def train_step(model: nn.Module, x: Tensor, rate: float = 1e-3) -> None:
    """A step of SGD, after which every parameter that is trained has a gradient."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    F.cross_entropy(model(x), torch.arange(len(x)) % CLASSES).backward()
    without = [name for name, value in trained.items() if value.grad is None or not value.grad.isfinite().all()]
    assert not without, f"no finite gradient for {len(without)} of {len(trained)}: {', '.join(without[:3])}"
    torch.optim.SGD(trained.values(), lr=rate).step()


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    """Up to a part of the expected tensor's length."""
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= tolerance, f"{error:.2g} away"  # which NaN is not


def refused(error: type[Exception], function: Callable[[], object]) -> None:
    """What the page calls a limit is still one; else the page is to be changed."""
    try:
        function()
    except error:
        return
    raise AssertionError("a limit of the page is none any more")
