"""Kill real runs at random moments, resume them until they are done, and compare them with a run left in peace.

    python tests/fault_injection.py --kills 100      # about ten minutes on two CPU cores; says what it survived

Every run is a process of its own, ended by SIGKILL, SIGTERM or SIGINT at a random moment, every other time while a
checkpoint is being written. A run that came through must equal the undisturbed one: final weights and optimizer bit
for bit, metrics.jsonl and TensorBoard's scalars point for point.
"""

import argparse
import dataclasses
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import write_images
from run_tools import assert_same_run, start

from run_folder import checkpoint_files
from user_input import UserInput

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 120.0  # seconds that a process may take to end


def small_run(folder: Path, epochs: int = 30) -> UserInput:
    """Epochs of a few steps, a checkpoint after each: most of the time goes into writing them."""
    return UserInput(
        depth=26,
        stages="CLLL",
        dataset="imagefolder",
        data_dir=str(write_images(folder / "images")),
        image_size=12,
        batch_size=8,
        epochs=epochs,
        checkpoint_every=1,
        device="cpu",
        runs_dir=str(folder / "undisturbed"),
    )


def undisturbed_run(args: UserInput) -> tuple[Path, float]:
    """Its folder, and the seconds that it took."""
    started = time.monotonic()
    finish(args)
    (folder,) = (args.runs_path / "Lambda").iterdir()
    return folder, time.monotonic() - started


def finish(args: UserInput, *flags: str) -> None:
    process = start(args, *flags)
    _, error = process.communicate(timeout=PATIENCE)
    if (process.returncode, error) != (0, ""):
        raise AssertionError(f"the run ended with code {process.returncode}: {error}")


def run_under_fire(args: UserInput, kills: int, seconds: float, chance: random.Random) -> tuple[Path, Counter]:
    """Kill a run up to `kills` times, each time within `seconds` of its start, and let it finish then.

    Returns:
        The folder of the run, and how often each signal ended it.
    """
    struck: Counter = Counter()
    while struck.total() < kills:
        process = start(args, *_resume(args))
        number = chance.choice(SIGNALS)
        moment = time.monotonic() + chance.uniform(0.2, 0.8) * seconds
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.001)
        if chance.random() < 0.5:  # wait for the next checkpoint, and strike while it is being written
            while process.poll() is None and not list(args.runs_path.glob("*/*/checkpoints/*.tmp")):
                time.sleep(0.0005)
            time.sleep(chance.uniform(0.0, 0.03))
        process.send_signal(number)
        _, error = process.communicate(timeout=PATIENCE)
        allowed = {0, -number, 128 + number}  # done before the signal came, ended by it, or saved and left
        if process.returncode not in allowed or (error and number != signal.SIGINT):
            raise AssertionError(f"{number.name} ended the run with code {process.returncode}: {error}")
        if process.returncode == 0:
            break
        struck[number.name] += 1
    finish(args, *_resume(args))
    (folder,) = (path.parent for path in args.runs_path.glob("*/*/checkpoints") if checkpoint_files(path.parent))
    return folder, struck


def _resume(args: UserInput) -> list[str]:
    return ["--resume"] if list(args.runs_path.glob("*/*/checkpoints/epoch*.pt")) else []


def main(kills: int, seed: int) -> None:
    chance, struck, runs = random.Random(seed), Counter(), 0
    with tempfile.TemporaryDirectory() as name:
        args = small_run(Path(name))
        expected, seconds = undisturbed_run(args)
        while struck.total() < kills:
            runs += 1
            attacked = dataclasses.replace(args, runs_dir=str(Path(name) / f"run{runs}"))
            folder, more = run_under_fire(attacked, min(10, kills - struck.total()), seconds, chance)
            assert_same_run(folder, expected)
            struck += more
            print(f"{struck.total()} kills, {runs} runs, every one equal to the undisturbed run", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(struck.items()))
    print(f"{struck.total()} kills survived ({counts}) in {runs} runs; no epoch lost, none double, same weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the moments and signals (default: 0)")
    options = parser.parse_args()
    main(options.kills, options.seed)
