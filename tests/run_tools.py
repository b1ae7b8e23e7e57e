"""Starting runs as processes, and comparing what they leave behind."""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from command_line.arguments import flag
from command_line.paths import PROJECT
from model_preparation import prepare_training
from run_state.board import STEP_TAGS, STEPS, TAGS
from run_state.interruption import StopRequest
from run_state.run_folder import best_file, checkpoint_files
from user_input import UserInput

TIMES = ("train_seconds", "test_seconds", "images_per_second", "peak_memory_gib", "finished")


def small_run(data: Path, runs: Path, **changes: Any) -> UserInput:
    """A run of four steps an epoch on the digits that `conftest.write_images` has written to a folder."""
    usual = UserInput(
        depth=26,
        width=16,
        dataset="imagefolder",
        data_dir=str(data),
        image_size=12,
        batch_size=8,
        epochs=3,
        checkpoint_every=1,
        device="cpu",
        precision="fp32",
        runs_dir=str(runs),
    )
    return dataclasses.replace(usual, **changes)


def flags(args: UserInput) -> list[str]:
    """Every setting, so that the process comes to the same ones whatever user_input.py has been edited to.

    Nor shall it matter what this CPU computes in.
    """
    args = dataclasses.replace(args, precision="fp32") if args.precision == "auto" else args
    args = dataclasses.replace(args, data_dir=str(args.data_path), runs_dir=str(args.runs_path))
    given = [flag(field, getattr(args, field.name)) for field in dataclasses.fields(args) if field.name != "resume"]
    return shlex.split(" ".join(given))


def start(args: UserInput, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(PROJECT / "main_general.py"), *flags(args), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def start_torchrun(args: UserInput, *more: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen:
    """As `start`, with several worker processes; the first of several errors is the first line on standard error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = [f"--nproc_per_node={processes}", f"--max_restarts={restarts}", "--monitor_interval=0.1"]
    command = [*launcher, *options, str(PROJECT / "main_general.py"), *flags(args), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=args.runs_path.parent,
    )


def end_of(process: subprocess.Popen, seconds: float = 300.0) -> tuple[str, str]:
    """What a process has said when it has ended, on standard output and standard error.

    Raises:
        AssertionError: it has not ended within so many seconds; it is killed then, and what it said is told.
    """
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        workers = children(process)
        for number in (process.pid, *workers):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        output, error = process.communicate()
        raise AssertionError(f"no end after {seconds:.0f} s; workers {workers}\n{output}\n{error}") from None


def children(process: subprocess.Popen) -> list[int]:
    """The processes that a process has started itself, oldest first."""
    table = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in table.splitlines()]
    return sorted(int(child) for parent, child in pairs if int(parent) == process.pid)


def wait_for_epochs(args: UserInput, epochs: int, process: subprocess.Popen) -> None:
    """Until so many lines of metrics are there, or the process has ended."""
    while process.poll() is None:
        if any(len(path.read_text().splitlines()) >= epochs for path in args.runs_path.glob("*/*/metrics.jsonl")):
            return
        time.sleep(0.02)


@contextmanager
def stopped_when_asked(times: int) -> Iterator[None]:
    """Runs are told to stop as they ask for the so manyth time whether to: after every step and every test."""
    asked, ask = itertools.count(1), StopRequest.__call__

    def answer(request: StopRequest) -> bool:
        if next(asked) == times:
            request._note(signal.SIGTERM, None)
        return ask(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__call__", answer)
        yield


def the_run(args: UserInput) -> Path:
    """The folder of the only run."""
    (config,) = args.runs_path.glob("*/*/config.json")
    return config.parent


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock and the machine."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(folder)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    timed = {STEP_TAGS["images_per_second"], *(TAGS.get(name) for name in TIMES)}
    tags = [tag for tag in board.Tags()["scalars"] if tag not in timed]
    return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in tags}


def final_state(folder: Path) -> dict:
    return saved_training(checkpoint_files(folder)[-1])


def saved_training(path: Path) -> dict:
    return torch.load(path, weights_only=True)["training"]


def assert_same_run(folder: Path, expected: Path, within_epochs: bool = True) -> None:
    """Both have the same figures and networks; and, where their event files were not damaged, points within epochs."""
    assert json.dumps(figures(folder)) == json.dumps(figures(expected))  # in which NaN is NaN
    ours, theirs = scalars(folder), scalars(expected)
    kept = [tag for tag in theirs if within_epochs or not tag.startswith(STEPS)]
    assert json.dumps([ours[tag] for tag in kept]) == json.dumps([theirs[tag] for tag in kept])
    assert ours.keys() <= theirs.keys()
    assert_same_training(final_state(folder), final_state(expected))
    assert best_file(folder).exists() == best_file(expected).exists()
    if best_file(expected).exists():
        assert_same_training(saved_training(best_file(folder)), saved_training(best_file(expected)))


def assert_same_training(ours: dict, theirs: dict) -> None:
    assert ours["scheduler"] == theirs["scheduler"]
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), (part, name)
    for index, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][index][key], value) for key, value in state.items())


def run_under_torchrun(args: UserInput, processes: int = 2) -> Path:
    """The folder of an undisturbed run of several processes."""
    process = start_torchrun(args, processes=processes)
    output, error = end_of(process)
    if process.returncode:
        raise AssertionError(f"torchrun ended with code {process.returncode}:\n{output}\n{error}")
    assert "Traceback" not in error
    assert output.count("tensorboard --logdir") == 1  # one process tells
    (folder,) = (args.runs_path / "Lambda").iterdir()
    return folder


def assert_same_curve(folder: Path, expected: Path, args: UserInput) -> float:
    """The same figures of each epoch and, measured by the way that training has gone, the same weights.

    Returns:
        How far the weights are apart, as a share of that way.
    """
    ours, theirs = figures(folder), figures(expected)
    assert len(ours) == len(theirs) == args.epochs
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    begin = prepare_training(args, 3, torch.device("cpu")).model.state_dict()
    one, other = final_state(folder)["model"], final_state(expected)["model"]
    assert one.keys() == other.keys() == begin.keys()
    apart = distance(one, other) / distance(other, begin)
    assert apart < 1e-4
    return apart


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((one[name] - other[name]).double().square().sum() for name in one)) ** 0.5


def half_done(folder: Path, where: Path) -> Path:
    """A copy of a run, as it was after its first checkpoint."""
    copy = shutil.copytree(folder, where / "runs" / "Lambda" / folder.name)
    (copy / "checkpoints" / "epoch0004.pt").unlink()
    return copy
