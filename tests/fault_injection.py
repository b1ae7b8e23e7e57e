"""Kill real runs at random moments, resume them until they are done, and compare them with a run left in peace.

    python tests/fault_injection.py --kills 100      # says what it survived

Every run is a process of its own, with one thread, ended at a random moment, two times in five while a checkpoint is
being written: by SIGKILL, SIGTERM, SIGINT or SIGHUP, by the kill of a worker that loads its images, or by an image that
cannot be read any more. Some get a second signal, which does not wait for the saving; of some, nobody reads standard
output. Every other run begins from weights, with parts of it frozen and its batches in pieces, and reads its images
from disk, by a worker; the others have neither. A run that came through must equal the undisturbed one: final weights
and optimizer and those of the best epoch bit for bit, metrics.jsonl and TensorBoard's scalars point for point. As many
runs as there are cores go on at a time.
"""

import argparse
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from conftest import write_images
from run_tools import assert_same_run, children, end_of, small_run, start

from model_preparation import build_model
from run_state.run_folder import checkpoint_files
from user_input import UserInput

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WORKER, IMAGE = "killed worker", "unreadable image"
PATIENCE = 120.0  # seconds that a process may take to end
KILLS = 10  # of one run


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds, measured on an undisturbed run."""

    start: float  # until the run's log is there
    epoch: float  # with all that belongs to it, the checkpoint above all


def run_to_kill(folder: Path, epochs: int = 30, width: int = 64) -> UserInput:
    """A checkpoint after every four steps, of 90 MB at this width: most of the time goes into writing them."""
    return small_run(write_images(folder / "images"), folder / "undisturbed", stages="CLLL", width=width, epochs=epochs)


def from_disk(args: UserInput) -> UserInput:
    """The same with its images read by a worker, begun from weights, parts of it frozen, its batches in pieces."""
    weights = Path(args.runs_dir).with_name("weights.pt")
    torch.save(build_model(args, 3).state_dict(), weights)
    return dataclasses.replace(
        args,
        memory_gib=0.0,
        workers=1,
        init_from=str(weights),
        freeze="stem,c2",
        body_lr_factor=0.1,
        accumulate=2,
        runs_dir=f"{args.runs_dir}_from_disk",
    )


def undisturbed_run(args: UserInput) -> tuple[Path, Pace]:
    """Its folder and its pace."""
    started, process = time.monotonic(), start_alone(args)
    wait_until(process, lambda: bool(log_changes(args)))
    begun = time.monotonic()
    finish(process)
    (folder,) = (args.runs_path / "Lambda").iterdir()
    return folder, Pace(begun - started, (time.monotonic() - begun) / args.epochs)


def start_alone(args: UserInput, *flags: str) -> subprocess.Popen:
    """A process that leaves the other cores alone."""
    return start(args, *flags, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen) -> None:
    output, error = end_of(process, PATIENCE)
    if (process.returncode, error) != (0, ""):
        raise AssertionError(f"the run ended with code {process.returncode}: {error or output}")


def run_under_fire(args: UserInput, kills: int, pace: Pace, chance: random.Random) -> tuple[Path, Counter]:
    """Kill a run up to `kills` times and let it finish then.

    One kill in five comes at any moment of a process's start. The others come within the first epochs from when it has
    taken up the run's log, and half of those while a checkpoint is being written.

    Returns:
        The folder of the run, and how often each signal ended it.
    """
    struck: Counter = Counter()
    while struck.total() < kills:
        ends = SIGNALS if args.memory_gib else (*SIGNALS, WORKER, IMAGE)
        end, logged = chance.choice(ends), log_changes(args)
        process = start_alone(args, *_resume(args))
        if chance.random() < 0.2:
            process.stdout.close()
        if chance.random() < 0.2:
            _sleep(process, chance.uniform(0.0, pace.start))
        else:
            for _ in range(chance.randrange(1, 5)):
                wait_until(process, lambda before=logged: log_changes(args) != before)
                logged = log_changes(args)
            _sleep(process, chance.uniform(0.0, pace.epoch), lambda before=logged: log_changes(args) != before)
            if chance.random() < 0.5:
                wait_until(process, lambda: any(args.runs_path.glob("*/*/checkpoints/*.tmp")))
                time.sleep(chance.uniform(0.0, 0.03))
        name = strike(process, end, args, chance)
        if process.returncode == 0:
            break
        struck[name] += 1
    finish(start_alone(args, *_resume(args)))
    (folder,) = (path.parent for path in args.runs_path.glob("*/*/checkpoints") if checkpoint_files(path.parent))
    return folder, struck


def strike(process: subprocess.Popen, end: signal.Signals | str, args: UserInput, chance: random.Random) -> str:
    """End a process, by its own signal or one to its worker, or by an image; gives the name of what was done.

    Raises:
        AssertionError: it did not end as it should.
    """
    image = sorted(args.data_path.glob("*/*/*.png"))[chance.randrange(30)]
    content = image.read_bytes()
    if end == IMAGE:
        image.write_bytes(b"")
    elif end == WORKER:
        wait_until(process, lambda: bool(children(process)))
        for worker in children(process):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    else:
        process.send_signal(end)
        if chance.random() < 0.3:  # and once more, which is to end it at once, whatever it is at
            time.sleep(chance.uniform(0.0, 0.3))
            process.send_signal(end)
    error = end_of_silent(process)
    image.write_bytes(content)
    if isinstance(end, str):
        allowed, told = {0, 2}, error.count("\n") == 1 if process.returncode else not error
    else:
        allowed, told = {0, -end, 128 + end}, not error or end == signal.SIGINT
    if process.returncode not in allowed or not told:  # 0: it was done before
        raise AssertionError(f"{end} ended the run with code {process.returncode}: {error}")
    return end if isinstance(end, str) else end.name


def wait_until(process: subprocess.Popen, holds: Callable[[], bool]) -> None:
    """Until something holds, or the process has ended."""
    while process.poll() is None and not holds():
        time.sleep(0.0005)


def _sleep(process: subprocess.Popen, seconds: float, or_until: Callable[[], bool] = lambda: False) -> None:
    moment = time.monotonic() + seconds
    wait_until(process, lambda: time.monotonic() > moment or or_until())


def log_changes(args: UserInput) -> set[int]:
    """Another set each time that a process takes up a run's log, or adds to it."""
    return {path.stat().st_mtime_ns for path in args.runs_path.glob("*/*/metrics.jsonl")}


def _resume(args: UserInput) -> list[str]:
    return ["--resume"] if list(args.runs_path.glob("*/*/checkpoints/epoch*.pt")) else []


def end_of_silent(process: subprocess.Popen) -> str:
    """What a process has said on standard error when it has ended, whether or not its standard output is read."""
    if process.stdout.closed:
        process.stdout = None
    return end_of(process, PATIENCE)[1]


def main(kills: int, seed: int) -> None:
    struck, runs, together = Counter(), 0, len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(together) as pool:
        args = dataclasses.replace(run_to_kill(Path(name)), validation_fraction=0.3)
        settings = (args, from_disk(args))
        expected, paces = zip(*map(undisturbed_run, settings), strict=True)

        def attack(run: int, kills: int) -> Counter:
            own = Path(name) / f"run{run}"
            shutil.copytree(args.data_path, own / "images")
            kind = run % 2
            attacked = dataclasses.replace(settings[kind], runs_dir=str(own / "runs"), data_dir=str(own / "images"))
            folder, struck = run_under_fire(attacked, kills, paces[kind], random.Random(f"{seed} {run}"))
            assert_same_run(folder, expected[kind])
            shutil.rmtree(own)
            return struck

        while left := kills - struck.total():
            parts = [KILLS] * (left // KILLS) + [left % KILLS] * (left % KILLS > 0)
            for more in pool.map(attack, range(runs, runs + len(parts)), parts):
                struck, runs = struck + more, runs + 1
                print(f"{struck.total()} kills, {runs} runs, every one equal to the undisturbed run", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(struck.items()))
    print(f"{struck.total()} kills survived ({counts}) in {runs} runs; no epoch lost, none double, same weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the moments and signals (default: 0)")
    options = parser.parse_args()
    main(options.kills, options.seed)
