"""The project's folder, and paths that lie in it."""

import os
import unicodedata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOGS = PROJECT / "results" / "logs"  # of the experiments' runs


def project_path(text: str) -> str:
    """A path from the command line, full, or relative to the project where it lies inside (so that logs can move)."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def printable(name: str) -> str:
    """A file's or folder's name as it can be shown and saved: in one line, what is no UTF-8 taken for Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    controls = {character for character in name if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    return "".join(ascii(character)[1:-1] if character in controls else character for character in name)
