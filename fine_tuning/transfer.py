"""Putting trained weights into a network that is not quite the one they were trained in."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from command_line.errors import InputError
from command_line.settings import counted
from fine_tuning.parts import part_of
from resnet_lambda import resized_state

NAMED = 8  # layers that a line names
UNTRAINED = "num_batches_tracked"  # counts what a batch norm has seen: whether it comes along makes no difference


@dataclass(frozen=True)
class Weights:
    """A state dict, and what is known of where it comes from."""

    source: str  # as the settings name it
    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None  # in the order of the logits; None where nobody says
    run: str | None = None  # the id of the run that trained it
    epochs: int | None = None  # for which it did


def transfer(weights: Weights, model: nn.Module, classes: Sequence[str]) -> dict[str, Any]:
    """Put into the model, in place, all the tensors that have a name and a shape of its own; say what was done.

    Global position embeddings are interpolated to the model's image size. The head is left out where it is known to be
    of other classes, or has another number of them.

    Returns:
        Lists of tensors by name: `taken`, of these `resized`, `left_out` of what was given, `made_anew` in the model.

    Raises:
        InputError: nothing fits.
    """
    own = {key: value.shape for key, value in model.state_dict().items()}
    given = unwrapped(weights.state, own)
    try:
        fitting = resized_state(model, given)
    except ValueError as error:
        raise InputError(f"init_from: {weights.source}: {error}") from error
    if weights.classes is not None and weights.classes != tuple(classes):
        fitting = {key: value for key, value in fitting.items() if part_of(key) != "head"}
    taken = {key: value for key, value in fitting.items() if own.get(key) == value.shape and not value.is_complex()}
    if not any(value.dim() > 1 for value in taken.values()):
        raise InputError(
            f"init_from: nothing of {weights.source} fits this network; it holds {_some(weights.state) or 'nothing'}, "
            f"and the network has {_some(own)}"
        )
    try:
        model.load_state_dict(taken, strict=False)
    except RuntimeError as error:  # such as a tensor without numbers, on the meta device
        reason = " ".join(str(error).split())[-160:]
        raise InputError(f"init_from: {weights.source} cannot be taken ({reason})") from error
    return {
        "from": weights.source,
        "run": weights.run,
        "epochs": weights.epochs,
        "taken": _trained(taken),
        "resized": [key for key in taken if given[key].shape != taken[key].shape],
        "left_out": _trained(key for key in given if key not in taken),
        "made_anew": _trained(key for key in own if key not in taken),
    }


def unwrapped(state: Mapping[str, Any], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a state dict, without a prefix that all names share: `module.`, `_orig_mod.`, `model.`."""
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor) and key != "n_averaged"}
    first = {key.split(".")[0] for key in own}
    while len(common := {key.split(".")[0] for key in tensors}) == 1 and not common & first:
        (prefix,) = common
        if not all("." in key for key in tensors):
            break
        tensors = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items()}
    return tensors


def told_of_start(done: Mapping[str, Any] | None, frozen: Sequence[str]) -> list[str]:
    """What `transfer` has done, or None for nothing, and of what is `frozen` the layers that no weights came for."""
    lines = [] if done is None else told(done)
    drawn = ", ".join(frozen) if done is None else _some(key for key in done["made_anew"] if part_of(key) in frozen)
    return [*lines, f"frozen, though drawn at random: {drawn}"] if drawn else lines


def told(done: Mapping[str, Any]) -> list[str]:
    """What `transfer` has done, in three lines."""
    epochs = "" if done["epochs"] is None else f" after {counted(done['epochs'], 'epoch')}"
    resized = f", {len(done['resized'])} position embeddings resized" if done["resized"] else ""
    return [
        f"weights of {done['from']}{epochs}: {_by_part(done)}{resized}",
        f"left out: {_some(done['left_out']) or 'nothing'}",
        f"made anew: {_some(done['made_anew']) or 'nothing'}",
    ]


def _by_part(done: Mapping[str, Any]) -> str:
    """`stem, c2, c3, 60 of 72 tensors of c4`."""
    taken = [part_of(key) for key in done["taken"]]
    missing = [part_of(key) for key in done["made_anew"]]
    words = []
    for part in dict.fromkeys(taken):
        count, anew = taken.count(part), missing.count(part)
        words.append(f"{count} of {count + anew} tensors of {part}" if anew else part)
    return ", ".join(words)


def _some(keys: Iterable[str]) -> str:
    """The layers that tensors belong to, blocks alike under one name: `layer3.*.conv2, fc`."""
    layers = dict.fromkeys(".".join(re.sub(r"\.\d+(?=\.)", ".*", key).split(".")[:-1][:3]) or key for key in keys)
    names = list(layers)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _trained(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not key.endswith(UNTRAINED)]
