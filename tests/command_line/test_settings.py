"""The machinery of settings, on settings of its own."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line.arguments import flags, read_flags
from command_line.errors import InputError
from command_line.paths import PROJECT, for_shell, project_path
from command_line.settings import Settings, from_saved, setting


@dataclass(frozen=True)
class Size(Settings):
    width: int = setting(64, "channels", minimum=1)
    ratio: float | None = setting(None, "of the squeeze; none: no squeeze", above=0.0, maximum=1.0, before=0.5)
    kind: str = setting("wide", "how it grows", choices=("wide", "deep"))
    fast: bool = setting(True, "skip what is slow", free=True)
    folder: str | None = setting(None, "where it lies", path=True, alone="latest")


def read(*argv: str) -> Size:
    return Size(**read_flags(Size, list(argv), "size.py", "A size."))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 0}, "width: 0 is not allowed; takes a whole number, at least 1"),
        ({"width": True}, "width: True is not allowed; takes a whole number, at least 1"),
        ({"width": None}, "width: None is not allowed; takes a whole number, at least 1"),
        ({"ratio": 1.5}, "ratio: 1.5 is not allowed; takes a number, above 0, at most 1, or none"),
        ({"ratio": float("nan")}, "ratio: nan is not allowed; takes a number, above 0, at most 1, or none"),
        ({"kind": "long"}, "kind: long is not allowed; takes one of wide, deep"),
        ({"folder": "a\nb"}, r"folder: 'a\nb' is not allowed; takes a text in one line, or none"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_line(values: dict, says: str) -> None:
    with pytest.raises(InputError) as error:
        Size(**values)
    assert str(error.value) == says


def test_flags_give_the_settings_back() -> None:
    settings = Size(width=8, ratio=0.25, fast=False, folder="/else where")
    assert flags(settings) == ["--width 8", "--ratio 0.25", "--no-fast", "--folder '/else where'"]
    assert read("--width", "8", "--ratio", "0.25", "--no-fast", "--folder", "/else where") == settings
    assert flags(Size()) == []
    assert read() == Size()


def test_a_flag_alone_and_a_path_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("--folder").folder == "latest"
    assert read("--folder", "none").folder is None
    assert read("--folder", "here").folder == str(tmp_path / "here")
    assert read("--folder", str(PROJECT / "runs")).folder == "runs" == project_path(str(PROJECT / "runs"))
    assert Size(folder=tmp_path).folder == str(tmp_path)  # type: ignore[arg-type]


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^--widht is not a flag; did you mean --width\? \(--help lists them all\)$"):
        read("--widht", "3")


def test_saved_settings_of_an_earlier_version() -> None:
    source = Path("config.json")
    assert from_saved(Size, {"width": 8}, {}, source) == Size(width=8, ratio=0.5)
    assert from_saved(Size, {"width": 8, "depth": 1}, {"depth": (1,)}, source).width == 8
    with pytest.raises(InputError, match=r"config.json has the setting depth 2, which this version .* cannot honour"):
        from_saved(Size, {"width": 8, "depth": 2}, {"depth": (1,)}, source)
    with pytest.raises(InputError, match="config.json holds no settings"):
        from_saved(Size, [], {}, source)  # type: ignore[arg-type]


def test_a_word_is_quoted_as_the_systems_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shlex.split(for_shell("it's a run")) == ["it's a run"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        quoted = [for_shell(text) for text in (r"C:\runs", r"C:\my runs", "it's")]
    assert quoted == [r"C:\runs", r'"C:\my runs"', "it's"]
