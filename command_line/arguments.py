"""Settings as flags: `--<name> <value>` for each field, `--<name>` and `--no-<name>` for one that is True or False."""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from command_line.errors import InputError, Parser
from command_line.paths import for_shell, project_path
from command_line.settings import Settings, as_word, base_type, groups, optional

METAVARS = {int: "N", float: "X", str: "TEXT"}
TRUTHS = ("true", "false", "yes", "no")


def read_flags(
    kind: type[Settings],
    argv: list[str] | None,
    script: str,
    description: str,
    epilog: str = "",
    other_names: Mapping[str, str] = MappingProxyType({}),
    recipes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The settings that the flags of `argv` (the process's own by default) name; their values are not yet checked.

    Args:
        epilog: stands below the flags in `--help`, as it is.
        other_names: what else a setting is called elsewhere, to the name that it has here.
        recipes: settings that `--recipe NAME` gives together, each of which its own flag may change.

    Raises:
        InputError: there is no such flag; the one that was meant is named.
    """
    parser = _Parser(
        prog=script,
        usage=f"python {script} [--SETTING VALUE ...]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.other_names = other_names
    if recipes:
        _add_recipes(parser, recipes)
    for heading, fields in groups(kind).items():
        group = parser.add_argument_group(heading)
        for field in fields:
            group.add_argument(f"--{field.name}", **_options(field))
    given = vars(parser.parse_args(argv))
    recipe = given.pop("recipe", None)
    if recipe is not None and recipe not in recipes:
        raise InputError(f"recipe: {recipe} is not allowed; takes {', '.join(recipes)}")
    return {**recipes.get(recipe, {}), **given}


def _add_recipes(parser: argparse.ArgumentParser, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    told = [
        f"{name}: {', '.join(f'{setting} {as_word(value)}' for setting, value in settings.items())}"
        for name, settings in recipes.items()
    ]
    group = parser.add_argument_group("a recipe", "settings by one name; flags beside it change them")
    group.add_argument("--recipe", metavar=f"{{{','.join(recipes)}}}", help="; ".join(told).replace("%", "%%"))


def flags(settings: Settings, typed: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """The flags that give these settings in a shell, for those that are not at their defaults.

    `typed` has the words of settings that are written otherwise, such as a path from the current folder.
    """
    return [
        flag(field, typed.get(field.name, getattr(settings, field.name)))
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    ]


class _Parser(Parser):
    other_names: Mapping[str, str] = MappingProxyType({})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        words = self.as_defined(args)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            raise InputError(f"{unknown[0]} is not a flag{self._hint(unknown[0], words)} (--help lists them all)")
        return namespace, unknown

    def _hint(self, word: str, words: list[str]) -> str:
        if not word.startswith("-"):
            before = dict(zip(words[1:], words, strict=False)).get(word, "")
            switch = isinstance(self._option_string_actions.get(before), argparse.BooleanOptionalAction)
            name = before.removeprefix("--").removeprefix("no-")
            return f"; --{name} takes no value: it is --{name} or --no-{name}" if switch else ""
        name = word.split("=")[0]
        if new := self.other_names.get(name.lstrip("-").replace("-", "_").lower()):
            return f"; here it is --{new}"
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"; did you mean {near[0]}?" if near else ""


def _options(field: dataclasses.Field) -> dict[str, Any]:
    help = f"{field.metadata['help']} (default: {as_word(field.default)})"
    options: dict[str, Any] = {"help": help.replace("%", "%%")}
    if field.type is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if field.metadata["alone"]:
        options |= {"nargs": "?", "const": field.metadata["alone"]}
    return options | {"type": _reader(field), "metavar": _metavar(field)}


def _metavar(field: dataclasses.Field) -> str:
    """What may follow the flag: `{lambda,baseline}`, `N|none`, `FOLDER`."""
    if choices := field.metadata["limits"].get("choices"):
        return f"{{{','.join(map(str, choices))}}}"
    kind = "FOLDER" if field.metadata["path"] else METAVARS[base_type(field)]
    return f"{kind}|none" if optional(field) else kind


def _reader(field: dataclasses.Field) -> Callable[[str], Any]:
    alone = field.metadata["alone"]

    def read(text: str) -> Any:
        if optional(field) and text.lower() == "none":
            return None
        if alone and text.lower() in TRUTHS:
            raise argparse.ArgumentTypeError(
                f"{text} is no folder; type --{field.name} for {alone}, --{field.name} FOLDER, or leave it out"
            )
        if field.metadata["path"] and text not in (alone, *field.metadata["words"]):
            return project_path(text)
        try:
            return base_type(field)(text)
        except ValueError:
            return text  # which the check refuses, in the same words as a mistyped default

    return read


def flag(field: dataclasses.Field, value: Any) -> str:
    """The flag that gives a field this value in a shell."""
    if field.type is bool:
        return f"--{field.name}" if value else f"--no-{field.name}"
    return f"--{field.name} {'none' if value is None else for_shell(str(value))}"
