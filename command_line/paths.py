"""The project's folder, and paths that lie in it."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def project_path(text: str) -> str:
    """A path from the command line, full, or relative to the project where it lies inside (so that logs can move)."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)
