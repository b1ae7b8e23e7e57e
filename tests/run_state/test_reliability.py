"""The quick part of the reliability suite; `python tests/fault_injection.py` is the long one."""

import copy
import dataclasses
import os
import pickle
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_injection import run_to_kill, run_under_fire, undisturbed_run
from fuzzing import fuzz
from hostile_files import HOSTILE_CHECKPOINTS, HOSTILE_IMAGES, hostile_checkpoint, hostile_image
from run_tools import assert_same_run, assert_same_training, saved_training

import main_general
from command_line.errors import InputError
from data_preprocessing import load_data
from data_sources.batches import Loader
from main_general import RunResult, main
from model_preparation import Training, prepare_training
from nntest import Evaluation, evaluate
from run_state.checkpoints import check_form, read_checkpoint
from run_state.interruption import StopRequest
from run_state.run_folder import best_file, checkpoint_files
from user_input import UserInput


def test_a_run_comes_through_kills(tmp_path: Path) -> None:
    args = dataclasses.replace(run_to_kill(tmp_path, epochs=4, width=16), validation_fraction=0.3)
    expected, pace = undisturbed_run(args)
    attacked = dataclasses.replace(args, runs_dir=str(tmp_path / "attacked"))
    folder, _ = run_under_fire(attacked, 2, pace, random.Random(0))
    assert_same_run(folder, expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult, RunResult]:
    """A run of three epochs, and another of the same settings but the seed."""
    args = run_to_kill(tmp_path_factory.mktemp("finished"), epochs=3, width=16)
    return args, main(args), main(dataclasses.replace(args, seed=1))


def damage(path: Path, how: str, stranger: Path) -> None:
    content = bytearray(path.read_bytes())
    chance = random.Random(0)
    if how == "flipped":
        for _ in range(8):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    changed = {
        "emptied": b"",
        "truncated": content[: len(content) * 2 // 3],
        "flipped": content,
        "garbage": chance.randbytes(2000),
        "swapped": stranger.read_bytes(),
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["emptied", "truncated", "flipped", "garbage", "swapped"])
@pytest.mark.parametrize("kind", ["config.json", "metrics.jsonl", "events*", "checkpoints/epoch0003.pt"])
def test_a_damaged_file_is_survived_or_named(
    finished: tuple[UserInput, RunResult, RunResult], tmp_path: Path, kind: str, how: str
) -> None:
    args, result, other = finished
    folder = tmp_path / "run"
    shutil.copytree(result.folder, folder)
    (victim,), (stranger,) = folder.glob(kind), other.folder.glob(kind)
    damage(victim, how, stranger)
    try:
        main(dataclasses.replace(args, resume=str(folder)))
    except InputError as error:
        assert kind == "config.json"
        assert "\n" not in str(error)
        return
    assert_same_run(folder, result.folder, within_epochs=not kind.startswith("events"))
    if kind.startswith("checkpoints"):
        assert "epoch0003.pt was passed over" in (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    """A run of four epochs with validation images, the second of which was the best."""
    args = run_to_kill(tmp_path_factory.mktemp("judged"), epochs=4, width=16)
    args = dataclasses.replace(args, validation_fraction=0.3, checkpoint_every=4)
    tops = iter([50.0, 75.0, 75.0, 25.0])

    def judge(training: Training, loader: Loader, name: str = "test", stop: StopRequest | None = None) -> Evaluation:
        found = evaluate(training, loader, name, stop)
        return dataclasses.replace(found, top1=next(tops)) if name == "validation" else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_general, "evaluate", judge)
        return args, main(args)


def copied(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where / "run"))


def test_the_best_by_validation_is_kept(judged: tuple[UserInput, RunResult]) -> None:
    _, result = judged
    assert [path.name for path in checkpoint_files(result.folder)] == ["epoch0002.pt", "epoch0004.pt"]
    best = best_file(result.folder)
    assert best.read_bytes() == checkpoint_files(result.folder)[0].read_bytes()
    assert f"epoch 2, top-1 75.00 %, {best}" in (result.folder / "log.txt").read_text()


def test_without_validation_images_none_is_chosen(finished: tuple[UserInput, RunResult, RunResult]) -> None:
    assert not best_file(finished[1].folder).exists()


@pytest.mark.parametrize("lost", ["missing", "older", "damaged"])
def test_the_best_is_made_again(judged: tuple[UserInput, RunResult], tmp_path: Path, lost: str) -> None:
    # such as by a kill between an epoch's checkpoint and the best
    args, result = judged
    folder = copied(result.folder, tmp_path)
    sound = best_file(folder).read_bytes()
    if lost == "missing":
        best_file(folder).unlink()
    elif lost == "older":
        state = torch.load(best_file(folder), weights_only=True)
        state["rows"].pop()
        state["training"]["scheduler"]["last_epoch"] = 1
        torch.save(state, best_file(folder))
    else:
        best_file(folder).write_bytes(sound[:5000])
    main(dataclasses.replace(args, resume=str(folder)))
    assert best_file(folder).read_bytes() == sound
    log = (folder / "log.txt").read_text()
    assert "best.pt was made again from epoch0002.pt\nresumed after 4 epochs" in log
    assert ("best.pt was passed over: BadZipFile" in log) == (lost == "damaged")


def test_a_best_that_is_lost_is_told(judged: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args, result = judged
    folder = copied(result.folder, tmp_path)
    for path in (best_file(folder), checkpoint_files(folder)[0]):
        path.unlink()
    main(dataclasses.replace(args, resume=str(folder)))
    assert "the network of epoch 2, the best so far, is in no checkpoint any more" in (folder / "log.txt").read_text()


def test_the_best_is_gone_on_from_when_no_newer_checkpoint_is_sound(
    judged: tuple[UserInput, RunResult], tmp_path: Path
) -> None:
    args, result = judged
    folder = copied(result.folder, tmp_path)
    for path in checkpoint_files(folder):
        path.write_bytes(b"")
    main(dataclasses.replace(args, resume=str(folder)))
    log = (folder / "log.txt").read_text()
    assert "epoch0004.pt was passed over" in log
    assert "best.pt is the newest sound checkpoint\nresumed after 2 epochs" in log
    ours, theirs = (saved_training(checkpoint_files(run)[-1]) for run in (folder, result.folder))
    assert_same_training(ours, theirs)


def test_flipped_bits_never_pass_for_a_checkpoint(tmp_path: Path) -> None:
    # a checkpoint's form, in a file small enough to be read two hundred times
    small = tmp_path / "small.pt"
    torch.save({"training": torch.arange(2000.0), "rows": [{"epoch": 1}]}, small)
    content, chance = small.read_bytes(), random.Random(0)
    caught = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        small.write_bytes(flipped)
        try:
            state = read_checkpoint(small)
        except Exception:
            caught += 1
            continue
        assert torch.equal(state["training"], torch.arange(2000.0))
        assert state["rows"] == [{"epoch": 1}]
    assert caught > 150


def test_hostile_input_is_refused_in_one_line_or_survived(capsys: pytest.CaptureFixture) -> None:
    assert fuzz(15, seed=1) == 0, capsys.readouterr().out


@pytest.mark.parametrize("how", range(HOSTILE_CHECKPOINTS))
def test_no_hostile_checkpoint_is_read(tmp_path: Path, how: int) -> None:
    path, marker = tmp_path / "epoch0001.pt", tmp_path / "code was run"
    torch.save({"training": torch.zeros(9)}, path)
    sound = path.read_bytes()
    assert read_checkpoint(path)["training"].shape == (9,)
    path.unlink()
    hostile_checkpoint(path, sound, marker, how)
    with pytest.raises((ValueError, RuntimeError, MemoryError, pickle.UnpicklingError, zipfile.BadZipFile)):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("how", range(HOSTILE_IMAGES))
def test_no_hostile_image_is_read(photos: Path, small: UserInput, tmp_path: Path, how: int) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    victim = folder / "test" / "one" / "11.png"
    victim.unlink()
    hostile_image(victim, how)
    with pytest.raises(InputError, match=r"11.png is (no readable image \(\w+: |EPS, which is not read here)"):
        load_data(dataclasses.replace(small, data_dir=str(folder)), torch.device("cpu"))


@pytest.fixture(scope="module")
def taken(finished: tuple[UserInput, RunResult, RunResult]) -> tuple[Training, dict]:
    """What is in a checkpoint, and a training that can take it."""
    args, result, _ = finished
    return prepare_training(args, 3, torch.device("cpu")), read_checkpoint(checkpoint_files(result.folder)[-1])


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (lambda saved: saved["training"]["model"].popitem(), "model.fc.bias is missing"),
        (lambda saved: saved["training"]["model"].update({"fc.bias": torch.zeros(4)}), "model.fc.bias is no tensor of"),
        (lambda saved: saved["training"]["optimizer"]["param_groups"][0].update(amsgrad=True), "optimizer's amsgrad"),
        (lambda saved: saved["training"]["optimizer"]["state"][0].pop("exp_avg"), "state of parameter 0 is another"),
        (lambda saved: saved["training"]["scheduler"].update(last_epoch=7), "the schedule is at another epoch"),
        (lambda saved: saved["rows"][0].update(epoch=2), "the figures of epoch 1 are not its own"),
        (lambda saved: saved["rows"][0].update(finished="now"), "epoch 1.finished is str"),
        (lambda saved: saved["progress"].update(steps=-1), "progress.steps is below zero"),
        (lambda saved: saved["config"].update(command="\ud800"), "surrogates not allowed"),
    ],
)
def test_a_checkpoint_of_another_form_is_refused(
    taken: tuple[Training, dict], forge: Callable[[dict], object], says: str
) -> None:
    training, saved = taken
    check_form(saved, training)
    forged = copy.deepcopy(saved)
    forge(forged)
    with pytest.raises(ValueError, match=says):
        check_form(forged, training)


def test_more_memory_than_there_is_is_told_in_one_line(small: UserInput) -> None:
    with pytest.raises(InputError, match="^batch_size: these settings take more memory than there is") as error:
        main(dataclasses.replace(small, key_depth=2**31 - 1))
    assert "\n" not in str(error.value)
    assert not small.runs_path.exists()


def test_a_second_signal_ends_at_once() -> None:
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
