"""Settings as the fields of a frozen dataclass: documented, limited, checked, and taken from an earlier version.

    @dataclass(frozen=True)
    class Size(Settings):
        width: int = setting(64, "channels", minimum=1)

`Size(width=0)` raises `InputError`: `width: 0 is not allowed; takes a whole number, at least 1`.
"""

import dataclasses
import os
import types
import typing
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from command_line.errors import InputError

LARGEST = 2**31 - 1  # of any whole number: what is beyond it overflows somewhere


class Heading(str):
    """Among the fields of a class of settings: what those after it are about."""


def setting(
    default: Any,
    help: str,
    *,
    before: Any = dataclasses.MISSING,
    free: bool = False,
    path: bool = False,
    alone: str | None = None,
    words: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """A documented field.

    Args:
        before: the value that does what was done before there was the setting, which a run takes that was saved
            without it; without one, whatever the default is. It stays when the default is edited.
        free: it may change between the start of a run and its resumption without making its figures another run's.
        path: the name of a file or folder.
        alone: the value that its flag means where none follows it.
        words: of a path, what may stand in its place and names no file.
        limits: `choices`, `minimum`, `maximum` (both included), `above`, `below` (excluded).
    """
    before = default if before is dataclasses.MISSING else before
    metadata = {"help": help, "limits": limits, "before": before, "free": free, "path": path, "alone": alone}
    metadata |= {"words": words}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checks each of its fields; raises `InputError` with one line for a value that is not allowed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["path"] and isinstance(value, os.PathLike):
                object.__setattr__(self, field.name, os.fspath(value))
            check(field, getattr(self, field.name))


def groups(kind: type[Settings]) -> dict[str, list[dataclasses.Field]]:
    """The fields under each heading; those that stand before any are called settings."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    found: dict[str, list[dataclasses.Field]] = {}
    for part in reversed(kind.__mro__):
        heading = "settings"
        for name, value in vars(part).items():
            if isinstance(value, Heading):
                heading = value
            elif name in fields:
                found.setdefault(heading, []).append(fields.pop(name))
    return found


def as_word(value: Any) -> str:
    """A value as it is told to people: none, yes, no, 0.0005, lambda."""
    if value is None:
        return "none"
    return ("no", "yes")[value] if type(value) is bool else str(value)


def counted(number: int, thing: str) -> str:
    """`1 epoch`, `1,200 epochs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


Kind = TypeVar("Kind", bound=Settings)


def from_saved(
    kind: type[Kind], saved: Mapping[str, Any], retired: Mapping[str, tuple[Any, ...]], source: Path
) -> Kind:
    """The settings of that kind that a run has saved, of this version of the project or of an earlier one.

    A setting that was not there yet takes the value that does what was done then. One that is no more, and has a value
    at which it said what is now always so, as `retired` tells, is dropped.

    Raises:
        InputError: naming `source`, and the setting of another version that cannot be honoured.
    """
    if not isinstance(saved, dict):
        raise InputError(f"resume: {source} holds no settings")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in saved.items():
        if name not in fields and value not in retired.get(name, ()):
            raise InputError(
                f"resume: {source} has the setting {name} {value}, which this version of the project cannot honour"
            )
    before = {name: field.metadata["before"] for name, field in fields.items()}
    return kind(**{name: saved.get(name, before[name]) for name in fields})


def check(field: dataclasses.Field, value: Any) -> None:
    """Refuse a value that is not of the field's type, or beyond its limits.

    Raises:
        InputError: naming the setting, the value, and what it takes.
    """
    if value is None and optional(field):
        return
    base, limits = base_type(field), field.metadata["limits"]
    fits_type = type(value) is base or (base is float and type(value) is int)
    if (
        not fits_type
        or (base is int and abs(value) > limits.get("maximum", LARGEST))
        or (base is float and not abs(value) <= LARGEST)  # nor nan
        or (base is str and not _writable(value))
        or ("choices" in limits and value not in limits["choices"])
        or ("minimum" in limits and value < limits["minimum"])
        or ("maximum" in limits and value > limits["maximum"])
        or ("above" in limits and value <= limits["above"])
        or ("below" in limits and value >= limits["below"])
    ):
        raise InputError(_refusal(field, value))


def _refusal(field: dataclasses.Field, value: Any) -> str:
    """`heads: 0 is not allowed; takes a whole number, at least 1`."""
    limits = field.metadata["limits"]
    if "choices" in limits:
        allowed = "one of " + ", ".join(str(choice) for choice in limits["choices"])
    else:
        kinds = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in one line"}
        if type(value) in (int, float) and abs(value) > LARGEST:
            limits = {**limits, "maximum": limits.get("maximum", LARGEST)}
        words = {"minimum": "at least", "maximum": "at most", "above": "above", "below": "below"}
        bounds = [f"{words[name]} {f'{bound:g}' if type(bound) is float else bound}" for name, bound in limits.items()]
        allowed = ", ".join([kinds[base_type(field)], *bounds])
    shown = ascii(value) if type(value) is str and not _writable(value) else f"{value}"
    shown = shown if len(shown) <= 200 else f"{shown[:50]}…"
    return f"{field.name}: {shown} is not allowed; takes {allowed}{', or none' if optional(field) else ''}"


def _writable(text: str) -> bool:
    """Whether a text can stand in a path and in a line of a log: no control characters, no lone surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def optional(field: dataclasses.Field) -> bool:
    """Whether it may be None."""
    return isinstance(field.type, types.UnionType)


def base_type(field: dataclasses.Field) -> type:
    """int, float, bool or str, without the None beside it."""
    return typing.get_args(field.type)[0] if optional(field) else field.type  # type: ignore[return-value]
