"""Ctrl-C and SIGTERM ask a run to save and leave; a second one of the same kind ends it at once."""

import signal
import threading
from types import FrameType

from acceleration.distributed import all_max


class StopRequest:
    """Within this context the first SIGINT or SIGTERM is noted, to be asked for between two steps: `stop()`.

    Of several processes, all are told at the same step when one of them got it: so each must ask equally often. A
    second signal of the same kind has its usual effect; torchrun may send a SIGTERM of its own after a Ctrl-C.
    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._usual: dict[int, object] = {}

    def __call__(self) -> bool:
        self.signal = all_max(self.signal or 0) or None
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in list(self._usual):
            self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._usual.pop(number))  # type: ignore[arg-type]
