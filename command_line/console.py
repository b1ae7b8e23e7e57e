"""The console: every character can be written on it, whatever its encoding; where it is gone, a run goes on without."""

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# how a console is told what its encoding has not; any other character comes as \x.., \u.... or \U........
SPELLED = {
    "λ": "lambda",
    "×": "x",
    "…": "...",
    "→": "->",
    "±": "+-",
    "−": "-",
    "–": "-",
    "·": "*",
    "γ": "gamma",
    "█": "#",
}


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(SPELLED.get(each) or ascii(each)[1:-1] for each in missing), error.end


codecs.register_error("spelled", _spell)


def spell_out() -> None:
    """Let what the console's encoding has not be spelled, in place of an error: cp1252, latin-1, cp437, ascii."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def drop_unwritten() -> OSError | None:
    """Let go of what a closed pipe, a full disk or a lost terminal did not take; gives standard output's error.

    Otherwise Python would try once more at its end, and complain.
    """
    errors: list[OSError | None] = []
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
            errors.append(None)
        except OSError as error:
            errors.append(error)
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return errors[0]


class Unwritten(OSError):
    """What was printed did not get out."""


class _Watched:
    """A stream of which a closed pipe, a full disk or a lost terminal is told to `lost`."""

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None]) -> None:
        self._stream, self._lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)


@contextmanager
def _streams(output: TextIO, error: TextIO) -> Iterator[None]:
    usual = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output, error
    try:
        yield
    finally:
        sys.stdout, sys.stderr = usual


@contextmanager
def lasting_console() -> Iterator[None]:
    """Within this context a console that is closed, full or gone ends nothing: what is said there is lost."""
    _occupy_descriptors()
    spell_out()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        watched = (_Watched(stream or nowhere, lambda error: None) for stream in (sys.stdout, sys.stderr))
        with _streams(*watched):  # type: ignore[arg-type]
            yield
    drop_unwritten()


@contextmanager
def watched_console() -> Iterator[None]:
    """Within this context, and where it ends, raises `Unwritten` when standard output does not take what is printed."""
    spell_out()
    if sys.stdout is None:
        yield
        return
    end = None
    with _streams(_Watched(sys.stdout, _raise_unwritten), sys.stderr):  # type: ignore[arg-type]
        try:
            yield
        except SystemExit as error:
            end = error
        if lost := drop_unwritten():
            _raise_unwritten(lost)
    if end:
        raise end


def _raise_unwritten(error: OSError) -> None:
    raise Unwritten(error.errno, error.strerror) from error


def _occupy_descriptors() -> None:
    """Let no file get the number of a standard stream that is closed: what libraries print would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
