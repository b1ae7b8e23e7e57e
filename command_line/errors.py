"""What a user can mend is told in one line, with exit code 2 and no traceback.

Every module raises `InputError` for it; every script runs inside `one_line_errors()`.
"""

import argparse
import errno
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from command_line.console import Unwritten, drop_unwritten, watched_console

EXIT_CODE = 2
CLOSED_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # as a shell reports the end of any program before `| head`


def _print(message: str) -> None:
    with suppress(OSError):  # nobody is there to read it
        print(message, file=sys.stderr, flush=True)


tell: Callable[[str], None] = _print  # of several processes, those of `distributed.world()` put theirs in its place


class InputError(ValueError):
    """A setting, file, folder or device that cannot be used; the message names it and says what is allowed."""


# argparse's words, and those in which all else is refused: the name, what is wrong, what is allowed
ARGPARSE = (
    (r"^argument (?:--)?(\w+)", r"\1"),
    (r"expected (?:at least )?one argument", "a value is missing (--help says which are allowed)"),
    (r"invalid int value: '(.*)'", r"\1 is not allowed; takes a whole number"),
    (r"^unrecognized arguments: (\S+).*", r"\1 is not a flag (--help lists them all)"),
)


class Parser(argparse.ArgumentParser):
    """Refuses in one line; in a flag, hyphens may stand for underscores, and the other way round."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_args(self.as_defined(args), namespace)

    def as_defined(self, args: Sequence[str] | None) -> list[str]:
        """The words of a command line (the process's own by default), with each flag as it was defined."""
        words = list(sys.argv[1:] if args is None else args)
        defined = {name.replace("-", "_"): name for name in self._option_string_actions}
        end = words.index("--") if "--" in words else len(words)  # what follows it is no flag
        for place, (name, *value) in enumerate(word.split("=", 1) for word in words[:end]):
            if name.startswith("--"):
                words[place] = "=".join([defined.get(name.replace("-", "_"), name), *value])
        return words

    def error(self, message: str) -> NoReturn:
        for pattern, words in ARGPARSE:
            message = re.sub(pattern, words, message)
        raise InputError(message)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with exit code 2 and one line on standard error when an `InputError` comes through.

    Of several processes that meet the same error, one prints it. Where nobody reads standard output any more, the
    process ends without a word and with code 141; where that is full, with a line.
    """
    try:
        with watched_console():
            yield
    except Unwritten as error:
        if error.errno == errno.EPIPE:
            raise SystemExit(CLOSED_PIPE) from None
        _end(f"standard output cannot be written ({error.strerror})")
    except InputError as error:
        _end(" ".join(str(error).split()))


def _end(message: str) -> NoReturn:
    tell(f"error: {message}")
    drop_unwritten()
    raise SystemExit(EXIT_CODE) from None


def summary(error: Exception) -> str:
    """The kind of an error and the first line of what it says, for a line that tells of it."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '').strip()}"
