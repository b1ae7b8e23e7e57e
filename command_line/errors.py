"""What a user can mend is told in one line, with exit code 2 and no traceback.

Every module raises `InputError` for it; every script runs inside `one_line_errors()`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_CODE = 2


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


tell: Callable[[str], None] = _print  # of several processes, those of `distributed.world()` put theirs in its place


class InputError(ValueError):
    """A setting, file, folder or device that cannot be used; the message names it and says what is allowed."""


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with exit code 2 and one line on standard error when an `InputError` comes through.

    Of several processes that meet the same error, one prints it.
    """
    try:
        yield
    except InputError as error:
        tell(f"error: {' '.join(str(error).split())}")
        raise SystemExit(EXIT_CODE) from None


def summary(error: Exception) -> str:
    """The kind of an error and the first line of what it says, for a line that tells of it."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '').strip()}"
