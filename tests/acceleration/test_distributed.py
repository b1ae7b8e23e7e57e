"""Several processes under torchrun come to what one process does."""

import dataclasses
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from run_tools import (
    assert_same_curve,
    assert_same_run,
    children,
    run_under_torchrun,
    small_run,
    start_torchrun,
    wait_for_epochs,
)
from torch import Tensor

from command_line.errors import InputError
from data_preprocessing import AugmentedLoader, load_data
from data_sources import batches as batches_module
from data_sources.batches import Loader
from main_general import RunResult, main
from user_input import UserInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def args(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> UserInput:
    """Maps that stay large enough, in steps that stay small enough, for rounding to stay rounding."""
    settings = {"stages": "CLLL", "stem": "cifar", "sync_batch_norm": True, "batch_size": 16, "optimizer": "sgd"}
    return small_run(photos, tmp_path_factory.mktemp("distributed") / "runs", **settings)


@pytest.fixture(scope="module")
def alone(args: UserInput) -> RunResult:
    return main(dataclasses.replace(args, runs_dir=f"{args.runs_dir}_alone"))


@pytest.fixture(scope="module")
def pair(args: UserInput) -> Path:
    """The folder of an undisturbed run of two processes."""
    return run_under_torchrun(args)


def test_two_processes_train_as_one_does(args: UserInput, alone: RunResult, pair: Path) -> None:
    assert_same_curve(pair, alone.folder, args)


def test_torchrun_restarts_a_killed_worker_and_the_run_goes_on(args: UserInput, pair: Path, tmp_path: Path) -> None:
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "runs"))
    process = start_torchrun(args, restarts=1)
    wait_for_epochs(args, 2, process)
    os.kill(children(process)[-1], signal.SIGKILL)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "resumed after" in output
    assert "Traceback" not in error
    (folder,) = (args.runs_path / "Lambda").iterdir()
    assert_same_run(folder, pair)


def test_a_signal_to_one_worker_stops_both_and_another_number_goes_on_with_batches_in_pieces(
    args: UserInput, tmp_path: Path
) -> None:
    args = dataclasses.replace(args, accumulate=2, runs_dir=str(tmp_path / "runs"))
    alone = main(dataclasses.replace(args, runs_dir=str(tmp_path / "alone")))
    process = start_torchrun(args)
    wait_for_epochs(args, 1, process)
    os.kill(children(process)[-1], signal.SIGTERM)
    output, error = process.communicate(timeout=300)
    assert output.count("main_general.py --resume") == 1, error
    assert set(re.findall(r"exitcode\s*: (-?\d+)", error)) == {"143"}
    resumed = main(dataclasses.replace(args, resume="latest"))
    assert_same_curve(resumed.folder, alone.folder, args)


def test_a_batch_that_cannot_be_shared_out_is_refused_once(args: UserInput, tmp_path: Path) -> None:
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "runs"), batch_size=15)
    process = start_torchrun(args)
    _, error = process.communicate(timeout=300)
    assert re.findall("^error: .*", error, re.M) == [
        "error: batch_size: 15 cannot be shared out evenly among 2 processes"
    ]
    assert set(re.findall(r"exitcode\s*: (-?\d+)", error)) == {"2"}
    assert not args.runs_path.exists()


def of_each_process(monkeypatch: pytest.MonkeyPatch, loader: Loader, processes: int) -> list[list[Tensor]]:
    """The images, flattened, of every process's share of every batch."""
    monkeypatch.setattr(batches_module, "size", lambda: processes)
    together = []
    for number in range(processes):
        monkeypatch.setattr(batches_module, "rank", lambda number=number: number)
        together.append([images.flatten(1) for images, _ in loader.batches(2)])
    return together


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("memory_gib", [2.0, 0.0], ids=["memory", "stream"])
@pytest.mark.parametrize("processes", [2, 4])
def test_every_image_of_a_batch_is_one_processs(
    args: UserInput, monkeypatch: pytest.MonkeyPatch, processes: int, memory_gib: float, part: str
) -> None:
    data = load_data(dataclasses.replace(args, memory_gib=memory_gib, workers=0, batch_size=4), CPU)
    loader = getattr(data, part)
    whole = [images.flatten(1) for images, _ in loader.batches(2)]
    shared = of_each_process(monkeypatch, loader, processes)
    assert all(len(batches) == len(loader) == len(whole) for batches in shared)
    for number, batch in enumerate(whole):
        parts = [batches[number] for batches in shared]
        if part == "train":
            assert {len(images) for images in parts} == {4 // processes}
        rows = torch.cat([images for images in parts if len(images)])
        assert sorted(rows.tolist()) == sorted(batch.tolist())


def test_small_sets_and_batches_are_shared_out_or_refused(args: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "size", lambda: 4)
    few = load_data(dataclasses.replace(args, batch_size=64), CPU).train
    assert isinstance(few, AugmentedLoader)
    assert (few.batch_size, few.images) == (32, 32)  # of 33
    load_data(dataclasses.replace(args, batch_size=4), CPU)
    with pytest.raises(InputError, match="batch_size: 4 leaves one image for each of 4 processes"):
        load_data(dataclasses.replace(args, batch_size=4, sync_batch_norm=False), CPU)
