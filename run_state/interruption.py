"""What ends a run between two steps: Ctrl-C, SIGTERM or SIGHUP, or an error. It saves and leaves."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TypeVar

from acceleration.distributed import all_max, first_of_all, size

Item = TypeVar("Item")
# Slurm and shells send SIGTERM, a terminal that is closed SIGHUP, which Windows has not
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
FAILED = 1000  # what a process without a batch tells the others, in place of a signal's number


class StopRequest:
    """Within this context the first of the signals is noted, to be asked for between two steps: `stop()`.

    So is an error that leaves the network sound; it is raised where the context ends, in all processes.

    Of several processes, all are told at the same step when one of them got it: so each must ask equally often, up to
    the first yes. A second signal of the same kind has its usual effect; torchrun may send a SIGTERM of its own after a
    Ctrl-C. A signal that the process ignores, as after `trap '' INT` or `nohup`, stays ignored. Outside the main
    thread, where Python allows no signal handlers, none is noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the one that all processes have agreed to stop by
        self.error: Exception | None = None  # what ended it in this process
        self._noted = 0
        self._agreed = False
        self._usual: dict[int, object] = {}

    def __call__(self) -> bool:
        if not self._agreed:
            reason = all_max(FAILED if self.error else self._noted)
            self._agreed = reason > 0
            self.signal = reason if 0 < reason < FAILED else None
        return self._agreed

    def until(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Hand the batches on, up to a stop or to one that cannot be had: that error is kept.

        So the network is between two steps wherever this ends, and can be saved.
        """
        try:
            for batch in batches:
                if self():
                    return
                yield batch
        except Exception as error:
            self.error = error
            self()

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Within this context, which leaves the network as it is, an error asks to save and leave.

        Of several processes, the others would not know of it: there it ends all of them at once.
        """
        try:
            yield
        except Exception as error:
            if size() > 1:
                raise
            self.error = error

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: another language's handler
                    self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._usual):
            self._restore(number)
        if isinstance(error, Exception) and self.error:
            raise self.error from None  # and not what came of it, in saving and telling
        if error is None and self() and self.signal is None and (first := first_of_all(self.error)):
            raise first

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = self._noted or number
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._usual.pop(number))  # type: ignore[arg-type]
