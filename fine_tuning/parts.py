"""The parts of a network by their names: those that stay as they are, and the two that learn at rates of their own.

A part is the stem, a stage (c2 to c5) or the head, which is the last layer, `fc`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from command_line.errors import InputError

PARTS = {
    "stem": ("conv1", "bn1"),
    "c2": ("layer1",),
    "c3": ("layer2",),
    "c4": ("layer3",),
    "c5": ("layer4",),
    "head": ("fc",),
}


def part_of(key: str) -> str:
    """The part that a parameter or a module belongs to, by its name: `layer3.0.conv2.weight` is of c4."""
    first = key.split(".")[0]
    return next((part for part, modules in PARTS.items() if first in modules), first)


class FrozenBatchNorm(_BatchNorm):
    """A batch norm of any kind that stays in evaluation mode and keeps its statistics, whatever the network is told."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)

    def reset_running_stats(self) -> None:
        pass  # as `torch.optim.swa_utils.update_bn` does with those of averaged weights

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Let these parts stay as they are, in place: no gradients, their batch norms in evaluation mode; keys stay.

    Raises:
        InputError: the network has no such part.
    """
    for module in _modules(model, parts, "freeze"):
        module.requires_grad_(False)
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.__class__ = FrozenBatchNorm
                norm.eval()


def parameter_groups(model: nn.Module, initial_lr: float, body_lr_factor: float) -> list[dict[str, Any]]:
    """What an optimizer is to train: one group, or where the factor is not 1, the body and the head.

    Raises:
        InputError: the network has no head.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if body_lr_factor == 1.0:
        return [{"params": trained}]
    of_head = {id(one) for module in _modules(model, ("head",), "body_lr_factor") for one in module.parameters()}
    body = [parameter for parameter in trained if id(parameter) not in of_head]
    head = [parameter for parameter in trained if id(parameter) in of_head]
    groups = [{"params": body, "lr": initial_lr * body_lr_factor}, {"params": head, "lr": initial_lr}]
    return [group for group in groups if group["params"]]


def _modules(model: nn.Module, parts: Iterable[str], setting: str) -> list[nn.Module]:
    children = dict(model.named_children())
    names = [name for part in parts for name in PARTS[part]]
    if missing := [name for name in names if name not in children]:
        raise InputError(f"{setting}: this network has no part {part_of(missing[0])} (there is no {missing[0]})")
    return [children[name] for name in names]
