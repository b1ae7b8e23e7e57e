"""The project's folder, and paths that lie in it."""

import os
import shlex
import subprocess
import unicodedata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOGS = PROJECT / "results" / "logs"  # of the experiments' runs


def project_path(text: str) -> str:
    """A path from the command line, full, or relative to the project where it lies inside (so that logs can move)."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def shown(path: Path) -> str:
    """A path as it is typed in the current folder: relative where it lies below, else full."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def quoted(path: Path) -> str:
    """The same as a shell takes it."""
    return for_shell(shown(path))


def for_shell(text: str) -> str:
    """A word of a command line as the system's shell takes it."""
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def typed(script: str) -> str:
    """One of the project's scripts as it is called from the current folder: `python predict.py`."""
    return f"python {quoted(PROJECT / script)}"


def printable(name: str) -> str:
    """A file's or folder's name as it can be shown and saved: in one line, what is no UTF-8 taken for Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    controls = {character for character in name if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    return "".join(ascii(character)[1:-1] if character in controls else character for character in name)
