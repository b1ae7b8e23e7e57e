"""Train for thousands of steps on digits, and say what memory and files the processes hold as time goes on.

    python tests/soak.py                      # about seven minutes on one CPU core; exit code 1 where either has grown
    python tests/soak.py --steps 20000        # as long as you like

Two runs, one from memory and one from two worker processes, with tiny steps: what leaks, leaks by the step, the epoch,
the checkpoint or the worker, and there are many of each. Counted is the resident memory of main, and that of the
workers together, at the end of an epoch's training; Linux only, since it reads /proc.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_general
from data_preprocessing import Data
from data_sources.batches import Batch, Loader
from main_general import main
from user_input import UserInput

BATCH, IMAGES = 32, 1437  # of a step, and of an epoch
ALLOWED_MIB = 24.0  # of growth from the second quarter of the samples to the last; 24 kB a step in 2,000 steps


@dataclass(frozen=True)
class Sample:
    """What is held at one moment; by the workers together."""

    main_mib: float
    main_files: int
    workers: int
    workers_mib: float
    workers_files: int


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def workers() -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def take_sample() -> Sample:
    main, others = os.getpid(), workers()
    return Sample(
        resident_mib(main),
        open_files(main),
        len(others),
        sum(resident_mib(other) for other in others),
        sum(open_files(other) for other in others),
    )


@dataclass(frozen=True)
class Sampled:
    """A loader that has a sample taken with the last batch of every epoch, when its workers are still there."""

    loader: Loader
    samples: list[Sample]

    @property
    def images(self) -> int:
        return self.loader.images

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader.batches(epoch, first), first + 1):
            if number == len(self):
                self.samples.append(take_sample())
            yield batch


def soak(folder: Path, steps: int, memory_gib: float) -> list[Sample]:
    """Train for that many steps, and give the sample of every epoch."""
    samples: list[Sample] = []
    load_data = main_general.load_data

    def load_sampled(*given: object) -> Data:
        data = load_data(*given)
        return replace(data, train=Sampled(data.train, samples))

    main_general.load_data = load_sampled
    try:
        result = main(
            UserInput(
                depth=26,
                dataset="digits",
                image_size=8,
                batch_size=BATCH,
                epochs=-(-steps // (IMAGES // BATCH)),
                memory_gib=memory_gib,
                device="cpu",
                runs_dir=str(folder),
            )
        )
    finally:
        main_general.load_data = load_data
    if result.stopped_by is not None:
        raise AssertionError(f"signal {result.stopped_by} ended the soak after {result.epochs} epochs")
    return samples


def growth(samples: list[Sample]) -> list[str]:
    """What has grown from the second quarter of the samples, when all is in place, to the last."""
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = []
    for field in fields(Sample):
        old, new = (statistics.median(getattr(sample, field.name) for sample in part) for part in (before, after))
        allowed = ALLOWED_MIB if field.name.endswith("mib") else 0
        print(f"    {field.name:14} {old:8.1f} -> {new:8.1f}")
        if new > old + allowed:
            grown.append(f"{field.name} has grown from {old:.1f} to {new:.1f}")
    return grown


def run(steps: int) -> list[str]:
    """Both runs, and what has grown in them."""
    grown = []
    for name, memory_gib in (("in memory", 2.0), ("streaming", 0.0)):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            samples = soak(Path(folder), steps, memory_gib)
        print(f"{name}: {len(samples)} epochs of {IMAGES // BATCH} steps")
        grown += [f"{name}: {words}" for words in growth(samples)]
    return grown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=2000, help="training steps of each of the two runs (default: 2000)"
    )
    steps = parser.parse_args().steps
    complaints = run(steps)
    print("\n".join(complaints) or f"twice {steps} steps soaked; neither memory nor open files have grown")
    sys.exit(1 if complaints else 0)
