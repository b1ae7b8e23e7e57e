"""The rooms of the project are those of the table in CONTRIBUTING.md: which imports which is read off the imports."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line.paths import PROJECT

MOST_LINES = 400  # of a file
MOST_FILES = 20  # at the top level
# What else is imported by what people take away from the project
OUTSIDE = {
    "lambda_ops/": {"torch"},
    "lambda_layer.py": {"torch"},
    "resnet.py": {"torch", "torchvision"},
    "resnet_lambda.py": {"torch", "torchvision"},
    "convert.py": {"torch"},
}
ROW = re.compile(r"^\| (?P<room>`[^|]*) \| (?P<holds>[^|]*) \| (?P<lines>\d+) \| (?P<imports>[^|]*) \|$", re.M)


def table() -> list[tuple[list[str], int, set[str]]]:
    """Of each row: its files and folders, their lines, and the files and folders that they may import."""
    rows: list[tuple[list[str], int, set[str]]] = []
    for row in ROW.finditer((PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        above = {name for names, *_ in rows for name in names}
        named = set(re.findall("`(.+?)`", row["imports"]))
        assert named or row["imports"] in ("nothing", "all above"), row["imports"]
        assert named <= above, f"{row['room']} imports what is not above it"
        names = re.findall("`(.+?)`", row["room"])
        rows.append((names, int(row["lines"]), above if row["imports"] == "all above" else named))
    return rows


def modules() -> list[Path]:
    """The project's files, without the tests."""
    files = [*sorted(PROJECT.glob("*.py")), *sorted(PROJECT.glob("*/*.py"))]
    return [path for path in files if not room(path).startswith((".", "tests/"))]


def room(path: Path) -> str:
    """A file's folder, or at the top level the file itself, as in the table."""
    first = path.relative_to(PROJECT).parts[0]
    return first if first.endswith(".py") else f"{first}/"


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The names of all modules that a file imports, `a.b` for what may be a module or a name out of `a`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def imported_files(path: Path) -> set[Path]:
    """The project's files among what a file imports."""
    paths = [PROJECT / name.replace(".", "/") for name in imports(path)]
    candidates = {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")}
    return {candidate for candidate in candidates if candidate.is_file()}


def test_every_file_is_in_one_row() -> None:
    named = [name for names, *_ in table() for name in names]
    assert sorted(named) == sorted({room(path) for path in modules()})


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0][0])
def test_a_room_imports_what_its_row_says(row: tuple[list[str], int, set[str]]) -> None:
    names, _, allowed = row
    for path in modules():
        if room(path) in names:
            beyond = {room(imported) for imported in imported_files(path)} - allowed - set(names)
            assert not beyond, f"{path.name} imports {beyond}"


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0][0])
def test_a_row_has_about_the_lines_that_it_says(row: tuple[list[str], int, set[str]]) -> None:
    names, said, _ = row
    lines = sum(len(path.read_text().splitlines()) for path in modules() if room(path) in names)
    assert abs(said - lines) <= max(50, lines / 4), f"{names} has {lines} lines"


def circles(path: Path, way: tuple[Path, ...] = (), done: set[Path] | None = None) -> Iterator[list[str]]:
    """The ways by which a file imports, through others, itself."""
    done = set() if done is None else done
    if path in way:
        yield [step.name for step in way[way.index(path) :]]
    elif path not in done:
        for imported in sorted(imported_files(path)):
            yield from circles(imported, (*way, path), done)
        done.add(path)


def test_there_is_no_circle() -> None:
    done: set[Path] = set()
    assert [circle for path in modules() for circle in circles(path, (), done)] == []


def test_what_is_taken_away_needs_pytorch_alone() -> None:
    ours = {room(path).rstrip("/").removesuffix(".py") for path in modules()}
    for path in modules():
        if room(path) in OUTSIDE:
            packages = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - ours
            assert packages <= OUTSIDE[room(path)], path.name


def test_files_are_short_and_few_at_the_top() -> None:
    long = {path.name for path in modules() if len(path.read_text().splitlines()) > MOST_LINES}
    assert not long
    assert len(list(PROJECT.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_an_import_within_a_function_says_why(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    within = [node for function in functions for node in ast.walk(function)]
    lines = {node.lineno for node in within if isinstance(node, ast.Import | ast.ImportFrom)}
    assert all("#" in source.splitlines()[line - 1] for line in lines), lines


def test_no_import_is_hidden_from_running() -> None:
    assert not [path.name for path in modules() if "typing.TYPE_CHECKING" in imports(path)]
