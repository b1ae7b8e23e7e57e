"""Doing many runs: each in a process of its own, some at once, stopped and gone on with as one."""

import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from acceleration.distributed import hide_bar
from command_line.paths import shown
from command_line.settings import counted
from evidence.runs import OUTPUT, Conditions, Run, work
from run_state.interruption import SIGNALS, StopRequest

TO_DO = ("to do", "cut off")  # states of a run
PATIENCE = 0.5  # seconds between two looks at whether a stop is wished
# by a signal that asks for it, whether the run had time to write a checkpoint or not
STOPPED = {code for wish in SIGNALS for code in (128 + wish, -wish)}


def carry_out_all(runs: dict[Run, str], conditions: Conditions, jobs: int, keep_checkpoints: bool) -> int:
    """Do all the runs, `jobs` at a time, each in a process; the exit code: 1 where a run is still to do."""
    waiting = [run for run in runs if state(run) in TO_DO]
    counts = f"{counted(len(runs), 'run')} on {conditions.data}, {len(runs) - len(waiting)} done"
    say(f"{counts}; into {shown(conditions.folder)}")
    context, failed, told = multiprocessing.get_context("spawn"), 0, False
    active: dict[BaseProcess, Run] = {}
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", unit="run", disable=hide_bar())
    with StopRequest() as stop, bar:
        while active or (waiting and not stop() and not failed):
            while waiting and len(active) < jobs and not stop() and not failed:
                run = waiting.pop(0)
                arguments = (run, threads(conditions, jobs), facts(run, runs[run], jobs), keep_checkpoints)
                process: BaseProcess = context.Process(target=work, args=arguments)
                process.start()
                active[process] = run
            bar.set_postfix_str(", ".join(run.label for run in active.values()))
            if stop() and not told:
                told = True  # once: a second signal ends a run without a checkpoint
                for process in active:
                    process.terminate()
            wait([process.sentinel for process in active], timeout=PATIENCE)
            for process in [process for process in active if not process.is_alive()]:
                process.join()
                failed += not ended(active.pop(process), process)
                bar.update()
    if stop.signal:
        say("stopped; the same command goes on")
        return 128 + stop.signal
    if left := sum(state(run) in TO_DO for run in runs):
        say(f"{counted(left, 'run')} still to do; the same command goes on")
    return 1 if left else 0


def say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


def state(run: Run) -> str:
    """`to do`, or what its record says."""
    record = run.record()
    return record.state if record else "to do"


def ended(run: Run, process: BaseProcess) -> bool:
    """Tell how a run's process came out; False where it ended for no reason that is a result."""
    record = run.record()
    if record and record.state == "done":
        row = record.rows[-1]
        time = sum(row["train_seconds"] + row["test_seconds"] for row in record.rows)
        say(f"{run.label}: top-1 {row['test_top1']:.2f} % (test), {time:.0f} s")
        return True
    if record and record.failure:
        say(f"{run.label}: {record.failure['kind']}: {record.failure['message']}")
        return True
    if process.exitcode in STOPPED:
        say(f"{run.label} was stopped")
        return True
    say(f"{run.label} ended with exit code {process.exitcode}: {last_words(run)}")
    return False


def last_words(run: Run) -> str:
    """The last line that its processes have printed, and where; one that was killed at once has made no file."""
    path = run.folder / OUTPUT
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
    return f"{lines[-1]} ({shown(path)})" if lines else "nothing was printed"


def threads(conditions: Conditions, jobs: int) -> int | None:
    """Threads of each of several runs at once on a CPU."""
    if conditions.device != "cpu":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def facts(run: Run, experiment: str, jobs: int) -> dict[str, Any]:
    """What config.json says of a run beside its settings."""
    conditions = run.conditions
    words = ("--only", experiment, "--runs", run.variation.name, "--seeds", str(run.seed))
    return {
        "command": conditions.command(*words, jobs=jobs),
        "experiment": {
            "run": run.variation.name,
            "network": run.variation.network,
            "data": conditions.data,
            "epochs_scale": conditions.epochs_scale,
            "images_scale": conditions.images_scale,
            "jobs": jobs,
        },
    }
