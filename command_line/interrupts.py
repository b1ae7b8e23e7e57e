"""Imported before what takes seconds: Ctrl-C ends one of the project's scripts at any moment without a traceback.

Python ends by the signal itself all the same, so a shell reports 130.
"""

import sys
from pathlib import Path
from types import TracebackType


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent.parent:
    sys.excepthook = _told
