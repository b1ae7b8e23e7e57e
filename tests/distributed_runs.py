"""Train with two and four processes, from memory and streaming, and kill their workers again and again.

    python tests/distributed_runs.py --kills 10      # about five minutes on two CPU cores

With synchronised batch norm every run must come to the figures and weights of one process with the same batch, within
float32 rounding. Then a run of two processes streams with batch norms of their own, while its workers are ended by
SIGKILL at random moments and restarted by torchrun: it must equal the undisturbed one bit for bit.
"""

import argparse
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fault_injection import finish, log_changes, run_to_kill, start_alone, wait_until
from run_tools import (
    assert_same_curve,
    assert_same_run,
    children,
    end_of,
    run_under_torchrun,
    start_torchrun,
)

from user_input import UserInput


def compare_curves(args: UserInput, where: Path) -> None:
    for source, memory_gib in (("memory", 2.0), ("stream", 0.0)):
        given = dataclasses.replace(args, memory_gib=memory_gib, runs_dir=str(where / f"{source}1"))
        finish(start_alone(given))
        (alone,) = (given.runs_path / "Lambda").iterdir()
        for processes in (2, 4):
            shared = dataclasses.replace(given, runs_dir=str(where / f"{source}{processes}"))
            apart = assert_same_curve(run_under_torchrun(shared, processes), alone, args)
            words = f"from {source}, {processes} processes: the curve of one, weights apart by {apart:.0e} of their way"
            print(words, flush=True)


def kill_workers(args: UserInput, where: Path, kills: int, chance: random.Random) -> int:
    """Kill a worker up to `kills` times, each time within an epoch of when the run went on; returns how often."""
    undisturbed = dataclasses.replace(args, runs_dir=str(where / "undisturbed"))
    started = time.monotonic()
    expected = run_under_torchrun(undisturbed)
    seconds = time.monotonic() - started
    attacked = dataclasses.replace(args, runs_dir=str(where / "attacked"))
    process, struck = start_torchrun(attacked, restarts=kills), 0
    while struck < kills and process.poll() is None:
        before = log_changes(attacked)
        wait_until(process, lambda before=before: log_changes(attacked) != before)
        time.sleep(chance.uniform(0.0, seconds / args.epochs))
        if workers := children(process):
            os.kill(chance.choice(workers), signal.SIGKILL)
            struck += 1
    output, error = end_of(process, 600.0)
    if process.returncode:
        raise AssertionError(f"torchrun ended with code {process.returncode}:\n{output}\n{error}")
    folder = max((attacked.runs_path / "Lambda").iterdir(), key=lambda run: len(list((run / "checkpoints").iterdir())))
    assert_same_run(folder, expected)
    return struck


def main(kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        plain = dataclasses.replace(run_to_kill(where), batch_size=16, stem="cifar", optimizer="sgd", workers=1)
        compare_curves(dataclasses.replace(plain, epochs=3, sync_batch_norm=True), where)
        struck = kill_workers(dataclasses.replace(plain, epochs=10, memory_gib=0.0), where, kills, random.Random(seed))
    print(f"{struck} workers killed and restarted; the same run, bit for bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how many workers to kill (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the moments (default: 0)")
    options = parser.parse_args()
    main(options.kills, options.seed)
