"""Whole runs: what they leave behind, and that an interrupted one comes to what an undisturbed one does."""

import dataclasses
import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_tools import (
    assert_same_run,
    figures,
    half_done,
    read_metrics,
    scalars,
    small_run,
    start,
    stopped_when_asked,
    wait_for_epochs,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import main_general
from command_line.errors import InputError
from data_preprocessing import load_data
from main_general import RunResult, main
from model_preparation import prepare_training
from nntrain import EpochProgress
from run_state import run_folder
from run_state.board import TAGS
from run_state.checkpoints import load_checkpoint
from run_state.resumption import load_settings
from run_state.run_folder import checkpoint_files
from user_input import UserInput


def test_a_run_leaves_all_that_it_promises(undisturbed: tuple[UserInput, RunResult]) -> None:
    args, result = undisturbed
    folder = result.folder
    assert folder.parent == args.runs_path / "Lambda"
    assert re.fullmatch(
        r"lambda26_imagefolder_CLLL_imagenet_seed0_[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_lr0\.0005_[\w.-]+", folder.name
    )
    assert [path.name for path in checkpoint_files(folder)] == ["epoch0002.pt", "epoch0004.pt"]
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"] == dataclasses.asdict(args)
    assert config["versions"]["torch"] == torch.__version__
    assert config["data"]["classes"] == ["nought", "one", "two"]
    assert config["parameters"] == result.parameters
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0005, 0.0025, 0.001875, 0.000625])
    last = rows[-1]
    assert (result.test_top1, result.test_loss) == (last["test_top1"], last["test_loss"])
    assert (result.train_top1, result.train_loss) == (last["train_top1"], last["train_loss"])
    assert result.best_top1 == max(row["test_top1"] for row in rows)
    assert (result.epochs, result.stopped_by) == (4, None)
    assert result.seconds == pytest.approx(sum(row["train_seconds"] + row["test_seconds"] for row in rows))
    assert result.images_per_second == pytest.approx(4 * 32 / sum(row["train_seconds"] for row in rows))
    log = (folder / "log.txt").read_text()
    assert "tensorboard --logdir" in log
    assert all(re.search(rf"^ +{epoch} .*{rows[epoch - 1]['test_top1']:.2f}", log, re.M) for epoch in range(1, 5))


def test_tensorboard_has_every_curve_the_images_and_the_hparams(undisturbed: tuple[UserInput, RunResult]) -> None:
    _, result = undisturbed
    board = EventAccumulator(str(result.folder))
    board.Reload()
    rows = read_metrics(result.folder)
    for key in rows[0].keys() - {"epoch", "finished"}:
        points = board.Scalars(TAGS[key])
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx([row[key] for row in rows])
    assert len(board.Images("visuals/augmented training images")) == 1
    assert {"settings/text_summary", "command/text_summary"} <= set(board.Tags()["tensors"])
    hparams = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content)
        for tag in board.PluginTagToContent("hparams")
    }
    started = hparams["_hparams_/session_start_info"].session_start_info.hparams
    assert (started["Depth"].string_value, started["Stages"].string_value) == ("26", "CLLL")
    named = [info.name.tag for info in hparams["_hparams_/experiment"].experiment.metric_infos]
    assert named[:4] == ["top-1/test", "top-1/train", "loss/test", "loss/train"]
    assert set(named[:4]) <= set(board.Tags()["scalars"])
    assert "_hparams_/session_end_info" in hparams


def test_a_run_is_the_same_every_time(undisturbed: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args, result = undisturbed
    again = main(dataclasses.replace(args, runs_dir=str(tmp_path)))
    assert_same_run(again.folder, result.folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "step", "average": "exponential", "average_decay": 0.8, "also_test_in_training_mode": True},
        {"schedule": "study", "average": "last_epochs", "average_epochs": 2, "keep_predictions": 2},
    ],
    ids=["by step, exponential average, training mode", "study, average of the last epochs, predictions"],
)
def test_a_run_that_ends_early_and_one_stopped_within_an_epoch_go_on_to_the_same_end(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, settings: dict
) -> None:
    args = dataclasses.replace(undisturbed[0], checkpoint_every=1, **settings)
    expected = main(dataclasses.replace(args, runs_dir=str(tmp_path / "whole")))
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "parts"))
    early = main(dataclasses.replace(args, stop_after=2))
    assert (early.epochs, early.stopped_by) == (2, None)
    assert (early.folder / "confusion.csv").exists()
    assert "--stop_after none" in (early.folder / "log.txt").read_text()
    args = dataclasses.replace(args, resume=str(early.folder))
    with stopped_when_asked(9):  # in the third epoch's tests
        assert main(args).epochs == 2
    resumed = main(args)
    assert_same_run(resumed.folder, expected.folder)
    last = read_metrics(resumed.folder)[-1]
    if args.also_test_in_training_mode:
        assert last["test_loss_training_mode"] != last["test_loss"]
    assert last["test_loss_average"] != last["test_loss"]
    predictions = resumed.folder / "predictions"
    kept = ["epoch0003.npz", "epoch0004.npz"] if args.keep_predictions else []
    assert sorted(path.name for path in predictions.glob("*"))[-2:] == kept  # those of the early end stay
    for name in kept:
        ours, theirs = np.load(predictions / name), np.load(expected.folder / "predictions" / name)
        assert set(ours) == set(theirs) == {"labels", "evaluation", "average"}
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    if kept:
        right = np.mean(ours["labels"] == ours["evaluation"])
        assert (100 * right, ours["labels"].dtype) == (pytest.approx(last["test_top1"]), np.uint8)


@pytest.mark.parametrize("at_step", [1, 4, 6, 11])
def test_a_stop_inside_an_epoch_loses_nothing(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, at_step: int
) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    with stopped_when_asked(at_step):
        stopped = main(args)
    assert stopped.stopped_by == signal.SIGTERM
    assert stopped.epochs < 4
    resumed = main(dataclasses.replace(args, resume="latest"))
    assert resumed.folder == stopped.folder
    assert_same_run(resumed.folder, expected.folder)
    assert (resumed.test_top1, resumed.best_top1, resumed.best_epoch) == (
        expected.test_top1,
        expected.best_top1,
        expected.best_epoch,
    )


def test_a_kill_between_checkpoints_leaves_neither_gap_nor_double(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    whole = main_general.run_epoch

    def killed(args, data, step, state, *others):
        if state.epochs_done == 3:  # one epoch after the checkpoint
            raise SystemError
        return whole(args, data, step, state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(main_general, "run_epoch", killed)
        with pytest.raises(SystemError):
            main(args)
    (folder,) = (tmp_path / "Lambda").iterdir()
    assert len(figures(folder)) == 3
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "train_lo')  # and the line that was being written
    resumed = main(dataclasses.replace(args, resume=str(folder)))
    assert resumed.folder == folder
    assert_same_run(folder, expected.folder)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    undisturbed: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    args, result = undisturbed
    folder = shutil.copytree(result.folder, tmp_path / "run")
    before = contents(folder)
    again = main(dataclasses.replace(args, resume=str(folder), data_dir="nowhere", device="cuda:99"))
    assert (again.epochs, again.test_top1, again.seconds) == (4, result.test_top1, result.seconds)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    main(load_settings(["--resume", "run"]))
    first, *figures = capsys.readouterr().out.splitlines()
    assert first == "run is finished; nothing was done and nothing was changed"
    assert f"top-1 {result.test_top1:.2f} % (test)" in figures[0]
    assert contents(folder) == before
    (folder / "confusion.csv").unlink()
    assert main(dataclasses.replace(args, resume=str(folder))).epochs == 4
    assert (folder / "confusion.csv").exists()


def test_a_run_is_trained_by_one_process(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, result = undisturbed
    folder = half_done(result.folder, tmp_path)
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 0.2)
    with (
        run_folder.locked(folder),
        pytest.raises(InputError, match="resume: another process is training"),
    ):
        main(dataclasses.replace(args, resume=str(folder)))


def test_settings_that_contradict_the_checkpoint_are_refused(undisturbed: tuple[UserInput, RunResult]) -> None:
    args, result = undisturbed
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")}
    with pytest.raises(InputError, match="contradict .*: heads is 8, there 4; seed is 1, there 0"):
        main(dataclasses.replace(args, resume=str(result.folder), heads=8, seed=1))
    assert {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")} == before


def test_resume_takes_the_settings_of_the_run(undisturbed: tuple[UserInput, RunResult], capsys) -> None:
    args, result = undisturbed
    resumed = load_settings(["--resume", "--runs_dir", args.runs_dir])
    settled = json.loads((result.folder / "config.json").read_text())["precision"]  # of auto, when the run began
    assert resumed == dataclasses.replace(args, precision=settled, resume=str(result.folder))
    given = load_settings(["--resume", str(result.folder), "--heads", "8", "--workers", "0"])
    assert (given.heads, given.workers) == (8, 0)  # which main refuses, and allows
    with pytest.raises(SystemExit):
        load_settings(["--resume", "--model", "baseline", "--runs_dir", args.runs_dir])
    assert "resume: there is no run with a checkpoint in" in capsys.readouterr().err


def test_validation_images_judge_and_are_logged(small: UserInput) -> None:
    result = main(dataclasses.replace(small, validation_fraction=0.3, epochs=2))
    rows = read_metrics(result.folder)
    assert result.best_top1 == max(row["validation_top1"] for row in rows)
    assert {tag for tag in scalars(result.folder) if tag.startswith("loss/")} == {
        "loss/train",
        "loss/validation",
        "loss/test",
    }


def test_a_checkpoint_gives_the_network_that_was_tested(undisturbed: tuple[UserInput, RunResult]) -> None:
    args, result = undisturbed
    data = load_data(args, torch.device("cpu"))
    training = prepare_training(args, len(data.classes), torch.device("cpu"))
    state, passed_over = load_checkpoint(result.folder, args, training)
    assert (state.epochs_done, state.progress, passed_over) == (4, EpochProgress(), [])
    assert state.rows == read_metrics(result.folder)
    test = main_general.evaluate(training, data.test)
    assert (test.loss, test.top1) == (result.test_loss, result.test_top1)


def test_an_interrupted_process_saves_leaves_and_goes_on(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path
) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "runs"))
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(args, *(["--resume"] if number == signal.SIGINT else []), cwd=tmp_path)
        wait_for_epochs(args, 1 if number == signal.SIGTERM else 2, process)
        process.send_signal(number)
        output, error = process.communicate(timeout=60)
        if process.returncode:  # it may have come to its end before the signal did
            assert process.returncode == 128 + number, error
            assert "main_general.py --resume" in output
        assert error == ""
    assert_same_run(main(dataclasses.replace(args, resume="latest")).folder, expected.folder)


def test_of_two_processes_that_resume_a_run_one_goes_on(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path
) -> None:
    args, expected = undisturbed
    folder = half_done(expected.folder, tmp_path)
    both = [start(args, "--resume", str(folder), cwd=tmp_path) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    for error, code in ends:
        assert code in (0, 2)
        assert (code == 2) == ("another process is training" in error)
    assert 0 in [code for _, code in ends]
    assert_same_run(folder, expected.folder)


def test_bad_input_writes_nothing(small: UserInput, tmp_path: Path) -> None:
    for changes in (
        {"device": "cuda:99"},
        {"data_dir": str(tmp_path / "none")},
        {"precision": "fp16"},
        {"resume": "latest"},
    ):
        with pytest.raises(InputError):
            main(dataclasses.replace(small, **changes))
    assert not small.runs_path.exists()


def test_the_seconds_of_an_epochs_tests_are_those_of_them_all(
    shallow: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def taking(seconds: float, name: str) -> None:
        whole = getattr(main_general, name)

        def test(*arguments):
            nonlocal clock
            clock += seconds
            return whole(*arguments)

        monkeypatch.setattr(main_general, name, test)

    taking(1.0, "evaluate")
    taking(10.0, "evaluate_in_training_mode")
    taking(100.0, "evaluate_average")
    monkeypatch.setattr(main_general, "time", SimpleNamespace(perf_counter=lambda: clock, time=time.time))
    tests = {"validation_fraction": 0.3, "also_test_in_training_mode": True, "average": "exponential"}
    result = main(small_run(photos, tmp_path, stages="CCCC", epochs=2, **tests))
    rows = read_metrics(result.folder)
    assert [row["test_seconds"] for row in rows] == [112.0, 112.0]
    assert result.seconds == pytest.approx(224.0 + sum(row["train_seconds"] for row in rows))
