"""Files and folders that cannot be written: one line, and nothing lost."""

import builtins
import dataclasses
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_tools import assert_same_run, figures, flags, half_done

from command_line.errors import InputError
from command_line.paths import PROJECT
from main_general import RunResult, main
from run_state import run_folder
from run_state.checkpoints import write_atomically
from user_input import UserInput


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


def test_a_folder_that_cannot_be_written_is_named(small: UserInput, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="runs_dir: no run folder can be made in .*runs"):
        main(small)
