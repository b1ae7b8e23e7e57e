"""Settings as flags: `--<name> <value>` for each field, `--<name>` and `--no-<name>` for one that is True or False."""

import argparse
import dataclasses
import difflib
import shlex
from collections.abc import Callable
from typing import Any

from command_line.errors import InputError, Parser
from command_line.paths import project_path
from command_line.settings import Settings, base_type, optional


def read_flags(kind: type[Settings], argv: list[str] | None, script: str, description: str) -> dict[str, Any]:
    """The settings that the flags of `argv` (the process's own by default) name; their values are not yet checked.

    Raises:
        InputError: there is no such flag; the nearest one is named.
    """
    parser = _Parser(prog=script, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(kind):
        help = f"{field.metadata['help']} (default: {'none' if field.default is None else field.default})"
        options: dict[str, Any] = {"help": help.replace("%", "%%")}
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _reader(field), "metavar": base_type(field).__name__.upper()}
        if field.metadata["alone"]:
            options |= {"nargs": "?", "const": field.metadata["alone"], "metavar": "FOLDER"}
        parser.add_argument(f"--{field.name}", **options)
    return vars(parser.parse_args(argv))


def flags(settings: Settings) -> list[str]:
    """The flags that give these settings in a shell, for those that are not at their defaults."""
    return [
        _flag(field, getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    ]


class _Parser(Parser):
    def parse_args(self, *arguments: Any) -> argparse.Namespace:  # type: ignore[override]
        namespace, unknown = self.parse_known_args(*arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{unknown[0]} is not a flag{hint} (--help lists them all)")
        return namespace


def _reader(field: dataclasses.Field) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if optional(field) and text.lower() == "none":
            return None
        if field.metadata["path"] and text not in (field.metadata["alone"], *field.metadata["words"]):
            return project_path(text)
        try:
            return base_type(field)(text)
        except ValueError:
            return text  # which the check refuses, in the same words as a mistyped default

    return read


def _flag(field: dataclasses.Field, value: Any) -> str:
    if field.type is bool:
        return f"--{field.name}" if value else f"--no-{field.name}"
    return f"--{field.name} {'none' if value is None else shlex.quote(str(value))}"
