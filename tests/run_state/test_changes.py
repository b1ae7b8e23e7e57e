"""What is other where a run goes on: free settings stay for good, other processes are told."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from run_tools import small_run

from data_preprocessing import load_data
from main_general import RunResult, main
from run_state import changes
from run_state.changes import take_over
from run_state.resumption import load_settings
from run_state.run_folder import checkpoint_files, read_config
from user_input import UserInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def early(shallow: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    """A run that was told to end after the first of its three epochs."""
    args = small_run(photos, tmp_path_factory.mktemp("runs"), stages="CCCL", stop_after=1)
    return args, main(args)


def test_free_settings_that_are_given_when_a_run_goes_on_are_its_own_from_then_on(
    early: tuple[UserInput, RunResult],
) -> None:
    args, result = early
    folder = result.folder
    begun = read_config(folder)["settings"]
    given = load_settings(["--resume", str(folder), "--stop_after", "2", "--workers", "0"])
    assert main(given).epochs == 2
    assert "from now on: stop_after 2, workers 0\n" in (folder / "log.txt").read_text()
    later = load_settings(["--resume", str(folder)])
    assert later == dataclasses.replace(args, stop_after=2, workers=0, resume=str(folder))
    assert read_config(folder)["settings"] == begun | {"stop_after": 2, "workers": 0}
    assert main(load_settings(["--resume", str(folder), "--stop_after", "none"])).epochs == 3
    assert main(load_settings(["--resume", str(folder)])).epochs == 3
    assert read_config(folder)["settings"]["stop_after"] is None
    assert len(checkpoint_files(folder)) == 2


def test_the_memory_of_a_run_that_knew_no_augmentation_stays_as_it_was(
    early: tuple[UserInput, RunResult], tmp_path: Path
) -> None:
    args, result = early
    config = json.loads((result.folder / "config.json").read_text())
    config["settings"].pop("augmentation")
    before = dict(config["settings"])
    given = dataclasses.replace(args, memory_gib=0.0, device="auto", stop_after=before["stop_after"])
    given = dataclasses.replace(given, workers=before["workers"])
    data = load_data(args, CPU)
    assert take_over(config, given, tmp_path, data) == ["from now on: device auto"]
    assert config["settings"] == before | {"device": "auto"}


def test_another_number_of_processes_is_told(
    early: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, result = early
    config = read_config(result.folder)
    args = load_settings(["--resume", str(result.folder)])
    data = load_data(args, CPU)
    assert take_over(config, args, tmp_path, data) == []
    monkeypatch.setattr(changes, "size", lambda: 2)
    (line,) = take_over(config, args, tmp_path, data)
    assert line == "processes: 1 when the run began, 2 now: batch norm sees other shares of each batch"
    (line,) = take_over(config, dataclasses.replace(args, sync_batch_norm=True), tmp_path, data)
    assert line == "processes: 1 when the run began, 2 now"
