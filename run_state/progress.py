"""Where a training stands: a bar on a terminal, a line a minute elsewhere, and points within an epoch for TensorBoard.

A point reads the sums that the device keeps, for which a GPU waits: so there are few. Which steps have one follows from
their numbers, so a resumed run has those of an undisturbed one.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from acceleration.distributed import all_sum, hide_bar, is_main, size
from data_sources.batches import Batch
from nntrain import EpochProgress, TrainingStep
from run_state.checkpoints import RunState
from user_input import UserInput

SECONDS = 60.0  # from one line to the next; an epoch that takes less has its line in the log alone
POINTS = 20  # of an epoch, about
LEAST, MOST = 5, 50  # steps from one point to the next


@dataclass(frozen=True)
class Point:
    """Of all processes: means over the epoch so far, and how fast the steps since the last point were."""

    step: int  # of the run, from 1
    loss: float
    top1: float  # percent
    learning_rate: float  # of that step
    images_per_second: float


def follow(
    batches: Iterable[Batch],
    args: UserInput,
    steps: int,
    state: RunState,
    step: TrainingStep,
    tell: Callable[[Point], None],
) -> Iterator[Batch]:
    """Hand on the batches of an epoch of `steps` steps, and say where it stands; every process takes the points."""
    epoch, before, images = state.epochs_done + 1, state.progress, 0
    began = told = time.monotonic()
    pace, lines = _Pace(), is_main() and not sys.stderr.isatty()
    with tqdm(None, f"epoch {epoch}", steps, False, initial=before.steps, disable=hide_bar()) as bar:
        for done, (pixels, labels) in enumerate(batches, start=1):
            at = before.steps + done
            due = is_due(at, steps, epoch)
            rate = float(step.training.optimizer.param_groups[-1]["lr"]) if due else 0.0  # the head's
            yield pixels, labels
            images += len(labels)
            bar.update()
            if due:
                loss, top1 = _so_far(step, before, images)
                point = Point((epoch - 1) * steps + at, loss, top1, rate, pace(images * size()))
                bar.set_postfix_str(f"loss {loss:.4f}, {point.images_per_second:.0f} images/s")
                tell(point)
            if lines and at < steps and time.monotonic() - told >= SECONDS:
                loss = float(step.sums[0]) / (before.images + images)  # waits for a GPU, before the time is taken
                told = time.monotonic()
                print(_line(args, steps, state, done, images * size(), told - began, loss), flush=True)


def is_due(at: int, steps: int, epoch: int) -> bool:
    """Whether there is a point after step `at` of an epoch; the first epoch begins with more, for whoever waits."""
    apart = min(MOST, max(LEAST, steps // POINTS))
    return at % apart == 0 or at == steps or (epoch == 1 and at < apart and at.bit_count() == 1)


def _so_far(step: TrainingStep, before: EpochProgress, images: int) -> tuple[float, float]:
    """Loss and top-1 of the epoch, of which this process has added so many images to those `before`."""
    loss_sum, correct, added = all_sum(*step.sums.tolist(), images)
    total = before.images + added
    return loss_sum / total, 100.0 * correct / total


class _Pace:
    """Images per second since it was asked last."""

    def __init__(self) -> None:
        self.images, self.time = 0, time.monotonic()

    def __call__(self, images: int) -> float:
        added, seconds = images - self.images, time.monotonic() - self.time
        self.images, self.time = images, self.time + seconds
        return added / max(seconds, 1e-9)


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
