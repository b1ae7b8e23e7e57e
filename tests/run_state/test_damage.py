"""Damaged and foreign files in a run's folder: the run goes on from what is sound, to the end of an undisturbed one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from run_tools import assert_same_run

from command_line.errors import InputError
from main_general import RunResult, main
from run_state.run_folder import checkpoint_files
from user_input import UserInput


def copied(undisturbed: tuple[UserInput, RunResult], runs: Path) -> tuple[UserInput, RunResult, Path]:
    """The settings and result of the run, and a copy of its folder among runs of its own."""
    args, expected = undisturbed
    folder = Path(shutil.copytree(expected.folder, runs / "Lambda" / expected.folder.name))
    return dataclasses.replace(args, runs_dir=str(runs)), expected, folder


@pytest.mark.parametrize("forged", [{"parameters": [1]}, {"data": "none"}])
def test_a_finished_run_is_none_where_its_checkpoint_is_no_runs(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, forged: dict
) -> None:
    args, result = undisturbed
    folder = shutil.copytree(result.folder, tmp_path / "run")
    newest = checkpoint_files(folder)[-1]
    saved = torch.load(newest, weights_only=True)
    torch.save({**saved, "config": saved["config"] | forged}, newest)
    again = main(dataclasses.replace(args, resume=str(folder)))
    assert (again.epochs, again.parameters) == (4, result.parameters)
    assert f"{newest.name} was passed over: ValueError, config." in (folder / "log.txt").read_text()
    assert_same_run(folder, result.folder)


@pytest.mark.parametrize("how", ["cut", "one bit"])
def test_a_damaged_checkpoint_is_passed_over(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, how: str
) -> None:
    args, expected, folder = copied(undisturbed, tmp_path)
    newest = checkpoint_files(folder)[-1]
    if how == "cut":
        newest.write_bytes(newest.read_bytes()[:100_000])
    else:
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    resumed = main(dataclasses.replace(args, resume="latest"))
    assert_same_run(resumed.folder, expected.folder)
    assert "epoch0004.pt was passed over: BadZipFile, " in (folder / "log.txt").read_text()
    for path in checkpoint_files(folder):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="resume: no checkpoint in .* is sound"):
        main(dataclasses.replace(args, resume="latest"))


def test_damaged_logs_are_written_anew(undisturbed: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args, expected, folder = copied(undisturbed, tmp_path)
    (folder / "metrics.jsonl").write_bytes(b"\0garbage")
    for events in folder.glob("events*"):
        events.write_bytes(events.read_bytes()[:500])
    main(dataclasses.replace(args, resume=str(folder)))
    assert_same_run(folder, expected.folder, within_epochs=False)
    (folder / "config.json").write_text('{"settings": ')
    with pytest.raises(InputError, match="config.json cannot be read"):
        main(dataclasses.replace(args, resume=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no run folder \(there is no config.json in it\)"):
        main(dataclasses.replace(args, resume=str(folder)))


def test_another_runs_checkpoint_is_passed_over(undisturbed: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    folder = main(args).folder
    stranger = checkpoint_files(expected.folder)[-1]
    (folder / "checkpoints" / "epoch0004.pt").write_bytes(stranger.read_bytes())
    resumed = main(dataclasses.replace(args, resume=str(folder)))
    assert "epoch0004.pt was passed over: InputError, it is another run's" in (folder / "log.txt").read_text()
    assert_same_run(resumed.folder, expected.folder)
