"""Where the runs are: makes a run's folder, finds the one to resume, reads what it says about itself."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from command_line import errors
from command_line.errors import InputError
from user_input import UserInput

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
CONFUSION = "confusion.csv"  # the last file that a run writes
LOCK = "lock"
LOCK_PATIENCE = 10.0  # seconds; the loader's workers outlive a killed process, and hold its lock, for five or so
CHECKPOINTS = "checkpoints"
CONFIG_MIB = 16  # a config.json of this size is none
GROUPS = {"lambda": "Lambda", "baseline": "Baseline"}


def group_folder(runs: Path, model: str) -> Path:
    """The folder of all the runs of a model: `<runs>/<Baseline|Lambda>`."""
    return runs / GROUPS[model]


def make_run_folder(group: Path, args: UserInput) -> Path:
    """Make `<group>/lambda50_cifar10_LLLL_imagenet_seed0_<MonDD_HH-MM-SS>_lr<lr>_<host>`.

    A number follows where that name is taken.

    Raises:
        InputError: `runs_dir` cannot be written.
    """
    what = f"{args.model}{args.depth}_{args.dataset}_{args.stage_word}_{args.stem}_seed{args.seed}"
    name = f"{what}_{datetime.now():%b%d_%H-%M-%S}_lr{args.initial_lr:g}_{host_name()}"
    try:
        group.mkdir(parents=True, exist_ok=True)
        return _make_new(group, name)
    except OSError as error:
        raise InputError(f"runs_dir: no run folder can be made in {group} ({error.strerror})") from error


def host_name() -> str:
    """This machine's name as it can stand in a file's, whatever bytes it has."""
    return re.sub(r"[^\w.-]", "-", socket.gethostname())


def _make_new(group: Path, name: str) -> Path:
    number = 1
    while True:
        folder = group / (name if number == 1 else f"{name}_{number}")
        try:
            (folder / CHECKPOINTS).mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1  # another run started in the same second


def find_run(group: Path, folder: Path | None = None) -> Path:
    """That folder of a run; without one, the run of the group that was started last.

    Raises:
        InputError: there is no such folder, or no checkpoint in it, or it is another user's alone.
    """
    if folder is None:
        runs = [run for path in group.glob(f"*/{CONFIG}") if (run := _resumable(path.parent))]
        if not runs:
            raise InputError(f"resume: there is no run with a checkpoint in {group}{_of_other_models(group)}")
        return max(runs)[1]
    try:
        if not (folder / CONFIG).is_file():
            raise InputError(f"resume: {folder} is no run folder (there is no {CONFIG} in it)")
        if not has_checkpoint(folder):
            raise InputError(f"resume: {folder} holds no checkpoint")
    except PermissionError as error:
        raise InputError(f"resume: {folder} may not be read, as another user's run") from error
    return folder


def _of_other_models(group: Path) -> str:
    """What is to be typed for a run that is there, though not in this group; nothing where there is none."""
    for model, name in GROUPS.items():
        folders = [path.parent for path in (group.parent / name).glob(f"*/{CONFIG}")]
        if name != group.name and any(os.access(folder, os.X_OK) and has_checkpoint(folder) for folder in folders):
            return f"; there is one with --model {model}"
    return ""


def _resumable(folder: Path) -> tuple[int, Path] | None:
    """The number of a run that can be gone on with, and its folder; a line says why another one is passed over."""
    try:
        number = read_config(folder)["number"]
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"resume: {folder} may not be written, as another user's run")
        return (number, folder) if has_checkpoint(folder) else None
    except (InputError, PermissionError) as error:
        errors.tell(f"{str(error).removeprefix('resume: ')}; it is passed over")
        return None


def find_launched(group: Path, launch: str | None) -> Path | None:
    """The run that an earlier attempt of this torchrun began; None where there is none, or no checkpoint in it."""
    mine: list[tuple[int, Path]] = []
    for path in group.glob(f"*/{CONFIG}"):
        with suppress(InputError):  # a damaged run is none of ours
            config = read_config(path.parent)
            if launch is not None and config.get("launch") == launch:
                mine.append((config["number"], path.parent))
    newest = max(mine)[1] if mine else None
    return newest if newest and has_checkpoint(newest) else None


def next_number(group: Path) -> int:
    """One more than the highest number of the group's runs, by which the newest is known, whatever the clock says."""
    numbers = [0]
    for path in group.glob(f"*/{CONFIG}"):
        with suppress(InputError):  # a damaged run is no reason against a new one
            numbers.append(read_config(path.parent)["number"])
    return 1 + max(numbers)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run to one process; the lock goes with the process, however that ends.

    Raises:
        InputError: another process is at it.
    """
    with writing(folder / LOCK):
        file = open(folder / LOCK, "a")  # noqa: SIM115 - closed below
    with file:
        patience = time.monotonic() + LOCK_PATIENCE
        while not _lock(file):
            if time.monotonic() > patience:
                raise InputError(f"resume: another process is training {folder}")
            time.sleep(0.1)
        yield


def _lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a full disk, a quota or a missing permission in one line; `path` is what is being written.

    Raises:
        InputError: in place of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{path} cannot be written ({reason}); what was saved before is sound: mend that, then go on with --resume"
        ) from error


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((folder / CHECKPOINTS).glob("epoch*.pt"), key=lambda path: (position(path), path.name))


def position(checkpoint: Path) -> tuple[int, int]:
    """Epochs that were done and steps of the next one, as the name says; of a name that says none, before them all."""
    numbers = re.fullmatch(r"epoch(\d+)(?:_step(\d+))?\.pt", checkpoint.name)
    return (int(numbers[1]), int(numbers[2] or 0)) if numbers else (-1, 0)


def best_file(folder: Path) -> Path:
    """The checkpoint of the epoch that did best on the validation images, where there are any."""
    return folder / CHECKPOINTS / "best.pt"


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return bool(checkpoint_files(folder)) or best_file(folder).exists()


def read_config(folder: Path) -> dict[str, Any]:
    """What a run wrote about itself when it began.

    Raises:
        InputError: `config.json` is missing or damaged.
    """
    path = folder / CONFIG
    try:
        if not path.is_file() or path.stat().st_size > CONFIG_MIB * 2**20:
            raise OSError("no file of a run")
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"id": config["id"], "number": int(config["number"]), "settings": config["settings"], **config}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"resume: {path} cannot be read ({type(error).__name__})") from error
