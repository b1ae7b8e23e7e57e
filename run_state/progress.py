"""Where a training stands, in lines: in a file, a bar would be nothing but control characters."""

import sys
import time
from collections.abc import Iterable, Iterator

from acceleration.distributed import is_main, size
from data_sources.batches import Batch
from nntrain import TrainingStep
from run_state.checkpoints import RunState
from user_input import UserInput

SECONDS = 60.0  # from one line to the next; an epoch that takes less has its line in the log alone


def progress_lines(
    batches: Iterable[Batch], args: UserInput, steps: int, state: RunState, step: TrainingStep
) -> Iterator[Batch]:
    """Hand on the batches of an epoch of `steps` steps; outside a terminal, say once a minute where it stands."""
    began = told = time.monotonic()
    images, shown = 0, is_main() and not sys.stderr.isatty()
    for done, (pixels, labels) in enumerate(batches):
        if shown and done and time.monotonic() - told >= SECONDS:
            loss = float(step.sums[0]) / (state.progress.images + images)  # waits for a GPU, before the time is taken
            told = time.monotonic()
            print(_line(args, steps, state, done, images * size(), told - began, loss), flush=True)
        images += len(labels)
        yield pixels, labels


def _line(args: UserInput, steps: int, state: RunState, done: int, images: int, seconds: float, loss: float) -> str:
    """Of `done` steps in so many `seconds`: `epoch 3 of 90, step 120 of 390: loss 1.8, 512 images/s, 2 min left …`."""
    at, pace = state.progress.steps + done, seconds / done
    test = state.rows[-1]["test_seconds"] if state.rows else 0.0
    epoch = state.epochs_done + 1
    left = (steps - at) * pace
    after = test + (args.last_epoch - epoch) * (steps * pace + test)
    return (
        f"epoch {epoch} of {args.last_epoch}, step {at} of {steps}: loss {loss:.4f}, {images / seconds:.0f} images/s, "
        f"{duration(left)} left of the epoch, {duration(left + after)} of the run"
    )


def duration(seconds: float) -> str:
    """`2 h 05 min`, `12 min`, or `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
