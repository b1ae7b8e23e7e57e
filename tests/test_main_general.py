"""Whole runs: what they leave behind, and that an interrupted one comes to what an undisturbed one does."""

import builtins
import dataclasses
import datetime
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_tools import assert_same_run, figures, flags, read_metrics, scalars, start, wait_for_epochs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import main_general
from command_line.errors import InputError
from command_line.paths import PROJECT
from data_preprocessing import load_data
from main_general import RunResult, main
from model_preparation import prepare_training
from nntrain import EpochProgress
from run_state import run_folder
from run_state.board import TAGS
from run_state.checkpoints import load_checkpoint, write_atomically
from run_state.resumption import load_settings
from run_state.run_folder import checkpoint_files
from user_input import UserInput


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    args = UserInput(
        depth=26,
        stages="CLLL",
        dataset="imagefolder",
        data_dir=str(photos),
        image_size=12,
        batch_size=8,
        epochs=4,
        checkpoint_every=2,
        device="cpu",
        runs_dir=str(tmp_path_factory.mktemp("undisturbed")),
    )
    return args, main(args)


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
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = dataclasses.replace(undisturbed[0], checkpoint_every=1, **settings)
    expected = main(dataclasses.replace(args, runs_dir=str(tmp_path / "whole")))
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "parts"))
    early = main(dataclasses.replace(args, stop_after=2))
    assert (early.epochs, early.stopped_by) == (2, None)
    assert (early.folder / "confusion.csv").exists()
    assert "--stop_after none" in (early.folder / "log.txt").read_text()
    asked = 0

    class StopAfterSteps(main_general.StopRequest):
        def __call__(self) -> bool:
            nonlocal asked
            asked += 1
            if asked == 9:  # in the third epoch's tests
                self._note(signal.SIGTERM, None)
            return super().__call__()

    args = dataclasses.replace(args, resume=str(early.folder))
    with monkeypatch.context() as patch:
        patch.setattr(main_general, "StopRequest", StopAfterSteps)
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
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    asked = 0

    class StopAfterSteps(main_general.StopRequest):
        def __call__(self) -> bool:
            nonlocal asked
            asked += 1
            if asked == at_step:
                self._note(signal.SIGTERM, None)
            return super().__call__()

    with monkeypatch.context() as patch:
        patch.setattr(main_general, "StopRequest", StopAfterSteps)
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
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path
) -> None:
    args, result = undisturbed
    folder = shutil.copytree(result.folder, tmp_path / "run")
    before = contents(folder)
    again = main(dataclasses.replace(args, resume=str(folder), data_dir="nowhere", device="cuda:99"))
    assert (again.epochs, again.test_top1, again.seconds) == (4, result.test_top1, result.seconds)
    done = subprocess.run(
        [sys.executable, PROJECT / "main_general.py", "--resume", "run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    first, *figures = done.stdout.splitlines()
    assert first == "run is finished; nothing was done and nothing was changed"
    assert f"top-1 {result.test_top1:.2f} % (test)" in figures[0]
    assert contents(folder) == before
    (folder / "confusion.csv").unlink()
    assert main(dataclasses.replace(args, resume=str(folder))).epochs == 4
    assert (folder / "confusion.csv").exists()


@pytest.mark.parametrize("how", ["cut", "one bit"])
def test_a_damaged_checkpoint_is_passed_over(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, how: str
) -> None:
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    folder = main(args).folder
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
    args, expected = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path))
    folder = main(args).folder
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
    assert resumed == dataclasses.replace(args, resume=str(result.folder))
    given = load_settings(["--resume", str(result.folder), "--heads", "8", "--workers", "0"])
    assert (given.heads, given.workers) == (8, 0)  # which main refuses, and allows
    with pytest.raises(SystemExit):
        load_settings(["--resume", "--model", "baseline", "--runs_dir", args.runs_dir])
    assert "resume: there is no run with a checkpoint in" in capsys.readouterr().err


def test_the_newest_run_is_resumed(small: UserInput) -> None:
    args = dataclasses.replace(small, epochs=1)
    folders = [main(args).folder for _ in range(2)]
    assert len(set(folders)) == 2
    assert main(dataclasses.replace(args, resume="latest")).folder == folders[1]


def test_two_runs_of_one_second_have_a_folder_each(small: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 3, 4, 5, 6)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    names = [run_folder.make_run_folder(small.runs_path, small).name for _ in range(3)]
    assert names[0].startswith("lambda26_imagefolder_CLLL_imagenet_seed0_Nov03_04-05-06_lr0.0005_")
    assert names[1:] == [f"{names[0]}_2", f"{names[0]}_3"]


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


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


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
            assert "go on with: --resume" in output
        assert error == ""
    last = start(args, "--resume", cwd=tmp_path)
    output, error = last.communicate(timeout=120)
    assert (last.returncode, error) == (0, "")
    (folder,) = (tmp_path / "runs" / "Lambda").iterdir()
    assert_same_run(folder, expected.folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard writes in a thread
@pytest.mark.parametrize("victim", ["metrics.jsonl", "log.txt", "events", "config.json"])
def test_a_full_disk_is_told_whatever_is_being_written(
    undisturbed: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    args, expected = undisturbed
    folder = half_done(expected.folder, tmp_path)
    with monkeypatch.context() as patch:
        fill_the_disk_for(victim, patch)
        with pytest.raises(
            InputError, match=r"cannot be written \(No space left on device\); what was saved before is"
        ):
            main(dataclasses.replace(args, resume=str(folder)))
    main(dataclasses.replace(args, resume=str(folder)))
    assert_same_run(folder, expected.folder)


def half_done(folder: Path, where: Path) -> Path:
    """A copy of a run, as it was after its first checkpoint."""
    copy = shutil.copytree(folder, where / "runs" / "Lambda" / folder.name)
    (copy / "checkpoints" / "epoch0004.pt").unlink()
    return copy


def fill_the_disk_for(victim: str, patch: pytest.MonkeyPatch) -> None:
    """From now on, whatever is written to files of that name fails as it does on a full disk."""
    usual = builtins.open

    def open_or_refuse(file, mode="r", *more, **options):
        if not isinstance(file, int) and victim in os.fsdecode(file) and set(mode) & set("wa"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(file, mode, *more, **options)

    patch.setattr(builtins, "open", open_or_refuse)
    patch.setattr(io, "open", open_or_refuse)  # by which name TensorBoard knows it


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")]
)
@pytest.mark.parametrize("part", ["runs", "run"])
def test_a_folder_that_may_not_be_written_is_one_line(
    undisturbed: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    number: int,
    says: str,
) -> None:
    args, result = undisturbed
    args = dataclasses.replace(args, runs_dir=str(tmp_path / "runs"))
    given = args if part == "runs" else dataclasses.replace(args, resume=str(half_done(result.folder, tmp_path)))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:  # and not chmod, which does not bind an administrator
        patch.setattr(Path, "mkdir", refuse)
        patch.setattr(run_folder, "open", refuse, raising=False)
        with pytest.raises(InputError, match=says) as error:
            main(given)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_clock_set_back_does_not_hide_the_newest_run(small: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz=None):
            return cls(cls.year_now, 12 if cls.year_now == 2030 else 1, 1)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    args = dataclasses.replace(small, epochs=1)
    older = main(args).folder
    Clock.year_now = 2020
    newer = main(args).folder
    for path in older.rglob("*"):
        os.utime(path, (2e9, 2e9))
    assert main(dataclasses.replace(args, resume="latest")).folder == newer


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


def test_a_full_disk_is_one_line_and_loses_nothing(undisturbed: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args = dataclasses.replace(undisturbed[0], runs_dir=str(tmp_path))
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"  # no file over 1 MiB
        "sys.argv[0] = 'main_general.py'\n"
        f"runpy.run_path({str(PROJECT / 'main_general.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *flags(args)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "epoch0002.pt cannot be written (File too large); what was saved before is sound" in done.stderr
    (folder,) = (tmp_path / "Lambda").iterdir()
    assert len(figures(folder)) == 2
    assert list((folder / "checkpoints").iterdir()) == []


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


def test_a_folder_that_cannot_be_written_is_named(small: UserInput, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="runs_dir: no run folder can be made in .*runs"):
        main(small)
