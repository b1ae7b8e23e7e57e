"""Starting runs as processes, and comparing what they leave behind."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from log_data import TAGS
from run_folder import checkpoint_files
from user_input import PROJECT, UserInput

TIMES = ("train_seconds", "test_seconds", "images_per_second", "peak_memory_gib", "finished")


def flags(args: UserInput) -> list[str]:
    return args.command().split()[2:]


def start(args: UserInput, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(PROJECT / "main_general.py"), *flags(args), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock and the machine."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(folder)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    timed = {TAGS.get(name) for name in TIMES}
    tags = [tag for tag in board.Tags()["scalars"] if tag not in timed]
    return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in tags}


def final_state(folder: Path) -> dict:
    return torch.load(checkpoint_files(folder)[-1], weights_only=True)["training"]


def assert_same_run(folder: Path, expected: Path) -> None:
    assert figures(folder) == figures(expected)
    assert scalars(folder) == scalars(expected)
    ours, theirs = final_state(folder), final_state(expected)
    assert ours["scheduler"] == theirs["scheduler"]
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    for index, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][index][key], value) for key, value in state.items())
