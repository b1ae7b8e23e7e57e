"""Timing and peak memory, and the file that a benchmark leaves: with device and versions, in its name too."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from acceleration.devices import describe_device, instructions
from command_line.paths import PROJECT

FOLDER = PROJECT / "results" / "benchmarks"
QUICK_FOLDER = PROJECT / "results" / "quick"  # which Git ignores
MEMORY_HOW = {
    "cpu": "highest sum of PyTorch's CPU allocations less frees during one forward + backward (profiler's "
    "memory events); parameters, the input and scratch memory inside MKL and oneDNN not counted",
    "cuda": "torch.cuda.max_memory_allocated during one forward + backward, less what was allocated before",
}


class Timing(NamedTuple):
    """Milliseconds: median, and the quartiles as the spread."""

    median: float
    low: float
    high: float


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def measure(functions: dict[str, Callable], device: torch.device, budget: float) -> dict[str, Timing]:
    """All the functions in turns, 3 to 25 times within about `budget` seconds, after one warm-up turn.

    Before each measured call comes one that is not: none is timed on the caches that another has left.
    """
    turn = 2 * sum(seconds(function, device) for function in functions.values())
    turns = min(25, max(3, int(budget / turn)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            function()
            times[name].append(1e3 * seconds(function, device))
    return {
        name: Timing(statistics.median(t), *(statistics.quantiles(t, n=4)[i] for i in (0, 2)))
        for name, t in times.items()
    }


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """MiB; see MEMORY_HOW."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with silent_standard_error(), profiler as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 2**20


@contextmanager
def silent_standard_error() -> Iterator[None]:
    """The profiler's C++ part writes two lines for each use, past `sys.stderr`."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def write_report(name: str, quick: bool, device: torch.device, content: dict) -> Path:
    """The JSON file of a benchmark, with the device and PyTorch's version in its name."""
    folder = QUICK_FOLDER if quick else FOLDER
    command = f"python benchmark.py {name}{' --quick' if quick else ''}"
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    report = {"command": command, "device": describe_device(device), "versions": versions, **content}
    described = f"{name} {describe_device(device)} {instructions(device)} torch {torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9.]+', '-', described.lower())}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path
