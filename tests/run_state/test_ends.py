"""What ends a run early: it saves, says why in one line, and comes to the end of an undisturbed one when resumed."""

import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_tools import assert_same_run, end_of, flags, read_metrics, small_run, start, the_run, wait_for_epochs
from torch import nn

import main_general
from command_line.errors import InputError
from command_line.paths import PROJECT
from data_preprocessing import load_data
from data_sources import streaming
from main_general import RunResult, main
from model_preparation import Training
from run_state import checkpoints, progress, run_folder, saving
from run_state.checkpoints import RunState, save_checkpoint, write_atomically
from run_state.interruption import StopRequest
from run_state.run_folder import checkpoint_files, find_run
from user_input import UserInput

READS = 32 + 15  # of images in an epoch: for four steps, for the test


def tiny(args: UserInput, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


@pytest.fixture(scope="module")
def read_from_disk(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    """A run that reads its images from disk and saves at its end alone."""
    runs = tmp_path_factory.mktemp("read_from_disk")
    args = small_run(photos, runs, depth=50, memory_gib=0.0, workers=0, checkpoint_every=3)
    return args, main(args, tiny)


def goes_on_to_the_same_end(args: UserInput, expected: Path) -> None:
    main(dataclasses.replace(args, resume="latest", workers=0), tiny)
    assert_same_run(the_run(args), expected)


# ------------------------------------------------------------------------------------------ what ends the epochs


@pytest.mark.parametrize(
    ("read", "checkpoint"),
    [(READS + 16 + 3, "epoch0001_step0000002.pt"), (READS - 10, "epoch0000_step0000004.pt")],
    ids=["training", "test"],
)
def test_an_image_that_cannot_be_read_any_more(
    read_from_disk: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    read: int,
    checkpoint: str,
) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path))
    usual, whole, asked = streaming._Stream.__getitem__, main_general.train, -1000

    def fail_at(stream: streaming._Stream, i: int) -> tuple:
        nonlocal asked
        asked += 1
        if asked == read:
            raise InputError("data_dir: 03.png is no readable image")
        return usual(stream, i)

    def count_from_here(*arguments: object) -> None:
        nonlocal asked
        asked = 0
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(streaming._Stream, "__getitem__", fail_at)
        patch.setattr(main_general, "train", count_from_here)
        with pytest.raises(InputError, match="^data_dir: 03.png is no readable image$"):
            main(args, tiny)
    assert [path.name for path in checkpoint_files(the_run(args))] == [checkpoint]
    assert "main_general.py --resume" in capsys.readouterr().out.splitlines()[-1]
    goes_on_to_the_same_end(args, read_from_disk[1].folder)


def die(by: str) -> None:
    if by == "a kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if by == "too little shared memory":  # as PyTorch says it
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
        )
    raise InputError("data_dir: 03.png is no readable image")


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (
            "a kill",
            "^workers: a process that loads images was ended by signal 9, as .* memory runs out; take fewer wor",
        ),
        ("too little shared memory", r"^workers: the memory that processes share is full \(/dev/shm; .* take fewer wo"),
        ("an unreadable image", "^data_dir: 03.png is no readable image$"),
    ],
)
def test_the_end_of_a_loaders_worker(
    read_from_disk: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, says: str
) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path), workers=1)
    usual, whole, reads, armed = streaming._Stream.__getitem__, main_general.tell_epoch, 0, False

    def fail_in_a_worker(stream: streaming._Stream, i: int) -> tuple:
        nonlocal reads
        reads += 1
        if armed and multiprocessing.parent_process() and reads == 20:
            die(by)
        return usual(stream, i)

    def arm(*arguments: object) -> None:
        nonlocal armed
        armed = True
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(streaming._Stream, "__getitem__", fail_in_a_worker)
        patch.setattr(main_general, "tell_epoch", arm)
        with pytest.raises(InputError, match=says) as error:
            main(args, tiny)
    assert "\n" not in str(error.value)
    (saved,) = checkpoint_files(the_run(args))
    assert re.fullmatch(r"epoch0001(_step000000[12])?\.pt", saved.name)
    goes_on_to_the_same_end(args, read_from_disk[1].folder)


def test_memory_that_runs_out_in_a_test(
    read_from_disk: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path))

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(main_general, "evaluate", fail)
        with pytest.raises(InputError, match="take more memory than there is .CUDA out of memory.."):
            main(args, tiny)
    assert [path.name for path in checkpoint_files(the_run(args))] == ["epoch0000_step0000004.pt"]
    goes_on_to_the_same_end(args, read_from_disk[1].folder)


@pytest.mark.parametrize("start_method", ["spawn"])  # forkserver sends its workers the same
def test_workers_read_the_same_whatever_way_they_start(
    read_from_disk: tuple[UserInput, RunResult], monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    args = read_from_disk[0]
    (pixels, labels), *_ = load_data(args, torch.device("cpu")).train.batches(epoch=1)
    monkeypatch.setattr(torch.multiprocessing, "Process", None)  # by which a loader would fork
    context = multiprocessing.get_context(start_method)
    for name in ("Process", "Queue", "Event"):
        monkeypatch.setattr(torch.multiprocessing, name, getattr(context, name))
    data = load_data(dataclasses.replace(args, workers=1), torch.device("cpu"))
    ours = next(data.train.batches(epoch=1))
    assert torch.equal(ours[0], pixels)
    assert torch.equal(ours[1], labels)


def test_signals_that_end_a_run_and_those_that_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop()
        assert stop.signal == signal.SIGHUP
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_kept_error_comes_before_what_comes_of_it() -> None:
    def kept() -> None:
        with StopRequest() as stop:
            assert list(stop.until(iter([1, 2]))) == [1, 2]
            with stop.keeping_errors():
                raise InputError("the first")
            assert list(stop.until(iter([1, 2]))) == []
            raise InputError("and the log could not be written either")

    with pytest.raises(InputError, match="^the first$"):
        kept()


# ------------------------------------------------------------------------------------ whole processes, and a shell


def test_no_console_and_hardly_a_locale_end_no_run(read_from_disk: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path), model="baseline", depth=26, epochs=1)
    command = shlex.join([sys.executable, "-O", str(PROJECT / "main_general.py"), *flags(args)])
    environment = {"PATH": os.environ["PATH"], "LANG": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = (
        subprocess.run(  # without HOME; standard error is closed, standard output read no further than its first line
            ["bash", "-c", f"{command} 2>&- | head -n 1; exit ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
    )
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    log = (the_run(args) / "log.txt").read_text(encoding="utf-8")
    assert log.startswith(done.stdout)
    assert log.splitlines()[-1] == "tensorboard --logdir ."
    assert all(read_metrics(the_run(args)))


def test_a_terminal_that_is_closed(read_from_disk: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path), model="baseline", depth=26, epochs=500)
    process = start(args, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_for_epochs(args, 1, process)
    process.send_signal(signal.SIGINT)  # which it ignores, as after `trap '' INT`
    wait_for_epochs(args, len(read_metrics(the_run(args))) + 2, process)
    process.send_signal(signal.SIGHUP)
    output, error = end_of(process)
    assert (process.returncode, error) == (128 + signal.SIGHUP, "")
    assert "main_general.py --resume" in output
    assert len(checkpoint_files(the_run(args))) > 0


def test_ctrl_c_while_pytorch_loads_leaves_no_traceback() -> None:
    command = [sys.executable, PROJECT / "predict.py", "a.png", "--checkpoint", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == -signal.SIGINT


def test_a_run_says_where_it_is_now_in_words_for_a_shell(
    read_from_disk: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box\udcff")  # a name that is no UTF-8
    monkeypatch.setenv("HOME", str(tmp_path))
    args = dataclasses.replace(read_from_disk[0], runs_dir="~/my runs", stop_after=1)
    folder = main(args, tiny).folder
    assert folder.parent == tmp_path / "my runs" / "Lambda"
    assert folder.name.endswith("_box-")
    said = capsys.readouterr().out
    assert f"--resume '{folder}' --stop_after none\n" in said
    assert said.endswith(f"tensorboard --logdir '{tmp_path}/my runs'\n")
    assert "of 33 training images, each epoch leaves 1 out" in said
    moved = folder.rename(tmp_path / "moved here")
    main(dataclasses.replace(args, resume=str(moved)), tiny)
    said = capsys.readouterr().out
    assert f"\n'{moved}'\npython predict.py IMAGE --checkpoint '{moved}'\n" in said
    assert said.endswith(f"tensorboard --logdir '{moved}'\n")


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_by_minutes_change_no_figure(
    read_from_disk: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path), checkpoint_minutes=1e-9)
    names = []

    def noted(folder: Path, state: RunState, training: Training) -> Path:
        path = save_checkpoint(folder, state, training)
        names.append(path.stem)
        return path

    monkeypatch.setattr(saving, "save_checkpoint", noted)
    result = main(args, tiny)
    assert_same_run(result.folder, read_from_disk[1].folder)
    steps = ["_step0000001", "_step0000002", "_step0000003"]
    for epoch in range(3):
        within = [f"epoch000{epoch}{step}" for step in steps]
        assert names[4 * epoch : 4 * epoch + 4] == [*within, f"epoch000{epoch + 1}"]


def test_the_newest_of_ten_thousand_epochs_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("epoch9998.pt", "epoch9999.pt", "epoch9999_step0000007.pt", "epoch_copy.pt"):  # as earlier versions
        (folder / name).touch()
    state = RunState({"settings": {"epochs": 12_000}}, [{"epoch": epoch} for epoch in range(1, 10_001)])
    monkeypatch.setattr(checkpoints, "random_states", dict)
    written = save_checkpoint(tmp_path, state, nn.Module())  # type: ignore[arg-type]
    assert written.name == "epoch10000.pt"
    assert [path.name for path in checkpoint_files(tmp_path)] == ["epoch9999_step0000007.pt", "epoch10000.pt"]
    names = []
    for epochs in (1, 9999, 10_000, 11_999):
        state.rows = [{}] * epochs
        names.append(state.checkpoint_name())
    assert names == sorted(names) == ["epoch00001.pt", "epoch09999.pt", "epoch10000.pt", "epoch11999.pt"]


@pytest.mark.parametrize("number", ["EINVAL", "EIO"])
def test_a_file_system_that_cannot_sync_folders_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    import errno

    usual = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(getattr(errno, number), "refused")
        usual(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == "EIO":
        with pytest.raises(OSError, match="refused"):
            write_atomically(tmp_path / "file", b"new")
    else:
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_run_of_the_other_model_is_named_where_there_is_none_of_this(tmp_path: Path) -> None:
    checkpoints = tmp_path / "Baseline" / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "config.json").write_text("{}")
    with pytest.raises(InputError, match="there is no run with a checkpoint in .*Lambda$"):
        find_run(tmp_path / "Lambda")
    (checkpoints / "epoch0001.pt").touch()
    with pytest.raises(InputError, match="Lambda; there is one with --model baseline$"):
        find_run(tmp_path / "Lambda")


def test_runs_that_cannot_be_gone_on_with_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number, name in enumerate(("ours", "damaged", "theirs")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "epoch0001.pt").touch()
        config = {"id": "", "number": number, "settings": {}}
        (tmp_path / name / "config.json").write_text("{" if name == "damaged" else json.dumps(config))
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: Path(path).name != "theirs")
    assert find_run(tmp_path) == tmp_path / "ours"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert any(
        re.fullmatch(r"\S+damaged/config.json cannot be read \(JSONDecodeError\); it is passed over", line)
        for line in said
    )
    assert f"{tmp_path / 'theirs'} may not be written, as another user's run; it is passed over" in said


def test_a_run_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(InputError, match=r"theirs may not be read, as another user's run$"):
        find_run(tmp_path, tmp_path / "theirs")


# -------------------------------------------------------------------------------------------------------- progress


def test_outside_a_terminal_lines_say_where_a_training_stands(
    read_from_disk: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    folder = main(dataclasses.replace(read_from_disk[0], runs_dir=str(tmp_path)), tiny).folder
    said = capsys.readouterr()
    form = r"epoch (\d) of 3, step (\d) of 4: loss \d\.\d{4}, \d+ images/s, \d+ s left of the epoch, \d+ s of the run"
    found = [line.groups() for line in map(re.compile(form).fullmatch, said.out.splitlines()) if line]
    assert found == [(str(epoch), str(step)) for epoch in (1, 2, 3) for step in (1, 2, 3)]
    assert not re.search(r"[\r\x1b]", said.out + said.err)
    assert "images/s, " not in (folder / "log.txt").read_text()
