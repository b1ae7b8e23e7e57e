"""Checkpoints: where a run stands, written so that no interruption leaves a damaged one, and read without code.

A file is written under a temporary name, synced, and renamed; the one before it is kept. Where there are validation
images, best.pt is a copy of the epoch that did best on them; where there are none, none is kept, since that would be
a choice by the test images. `weights_only=True` throughout: a checkpoint from a stranger is data, not a program, and
what does not have the form of this run's state is never taken in.
"""

import dataclasses
import errno
import io
import json
import math
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, optim

from acceleration.distributed import on_main
from command_line.errors import InputError
from model_preparation import Training
from nntrain import EpochProgress
from run_state.run_folder import CHECKPOINTS, best_file, checkpoint_files, position, read_config, writing
from run_state.saved_settings import saved_settings
from user_input import UserInput, contradictions

NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of a folder, on a file system that has no such thing: vboxsf, old CIFS
KEPT = 2  # newest checkpoints that stay: should the last one be damaged, there is one before it
# What is read of a checkpoint, as examples of its types: a file from elsewhere may hold anything.
CONFIG_FORM = {
    "id": "",
    "number": 0,
    "command": "",
    "started": "",
    "settings": {},
    "device": "",
    "precision": "",
    "parameters": 0,
    "data": {"train_images": 0, "validation_images": 0, "test_images": 0, "classes": []},
}
ROW_FORM = {
    "epoch": 0,
    **dict.fromkeys(("learning_rate", "train_loss", "train_top1", "test_loss", "test_top1"), 0.0),
    **dict.fromkeys(("train_seconds", "test_seconds", "images_per_second", "peak_memory_gib", "finished"), 0.0),
}
VALIDATION_FORM = {"validation_loss": 0.0, "validation_top1": 0.0}
FURTHER_TESTS = ("training_mode", "average")
FURTHER_FORM = {f"test_{figure}_{test}": 0.0 for test in FURTHER_TESTS for figure in ("loss", "top1")}
FURTHER_FORM |= {"validation_top5": 0.0, "test_top5": 0.0}
OPTIMIZER_STATE = {
    optim.SGD: {"momentum_buffer"},
    optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


@dataclass
class RunState:
    """Where a run stands, beside its network: what a checkpoint says in words and figures."""

    config: dict[str, Any]  # as in config.json
    rows: list[dict[str, Any]] = field(default_factory=list)  # as in metrics.jsonl, one for each epoch that is done
    progress: EpochProgress = field(default_factory=EpochProgress)  # of the epoch that was begun

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    @property
    def best_epoch(self) -> int | None:
        """The first of those with the highest top-1 on the validation images; None where there are none."""
        judged = [row for row in self.rows if "validation_top1" in row]
        return max(judged, key=lambda row: row["validation_top1"])["epoch"] if judged else None

    @property
    def is_best(self) -> bool:
        """Whether the network is, at this moment, the best so far."""
        return self.progress.steps == 0 and self.epochs_done == self.best_epoch

    @property
    def lowest_loss(self) -> dict[str, Any] | None:
        """The first row of those with the lowest loss on the validation images; None where there are none."""
        judged = [row for row in self.rows if "validation_loss" in row]
        if not judged:
            return None
        return min(judged, key=lambda row: (math.isnan(row["validation_loss"]), row["validation_loss"]))

    def out_of_patience(self, args: UserInput) -> bool:
        """Whether the loss on the validation images has not fallen for as many epochs as the settings allow."""
        lowest = self.lowest_loss
        return args.patience is not None and lowest is not None and self.epochs_done - lowest["epoch"] >= args.patience

    def ended(self, args: UserInput) -> bool:
        """Whether there is no more to train, by the settings."""
        return self.epochs_done >= args.last_epoch or self.out_of_patience(args)

    def checkpoint_name(self) -> str:
        """Names of a run sort as its states do: as many digits as its last epoch takes, four at least."""
        digits = max(4, len(str(self.config["settings"]["epochs"])))
        step = f"_step{self.progress.steps:07d}" if self.progress.steps else ""
        return f"epoch{self.epochs_done:0{digits}d}{step}.pt"


def save_checkpoint(folder: Path, state: RunState, training: Training) -> Path:
    """Write the state of a run into its folder and let go of all but the newest `KEPT` checkpoints and the best.

    Raises:
        InputError: it could not be written; the checkpoints before it are as they were.
    """
    buffer = io.BytesIO()
    saved = {**dataclasses.asdict(state), "training": training.state_dict(), "random": random_states()}
    torch.save(saved, buffer)
    path = folder / CHECKPOINTS / state.checkpoint_name()
    with writing(path):
        write_atomically(path, buffer.getbuffer())
    with writing(best_file(folder)):
        if state.is_best:
            write_atomically(best_file(folder), buffer.getbuffer())
        for old in checkpoint_files(folder)[:-KEPT]:
            old.unlink()
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU; raises whatever a damaged file happens to."""
    if not path.is_file():
        raise ValueError("it is no file")  # such as a pipe, from which nothing would ever come
    check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_archive(path: Path) -> None:
    """Raise where a file that `torch.save` wrote is damaged, or would fill the memory."""
    with zipfile.ZipFile(path) as archive:
        declared, there = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if declared > there:  # torch.save does not compress: this would fill the memory
            raise zipfile.BadZipFile(f"it declares {declared} bytes and has {there}")
        if damaged := archive.testzip():  # torch.load does not look at the checksums that torch.save writes
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def load_checkpoint(folder: Path, args: UserInput, training: Training) -> tuple[RunState, list[str]]:
    """Put `training` and the random states where the newest sound checkpoint of a run left them.

    Returns:
        The run's state, and lines on what was amiss: each checkpoint that was passed over, damaged or another run's,
        and why; whether the best was the newest that is sound; whether the best is lost, or was made again.

    Of several processes, rank 0 reads for all of them.

    Raises:
        InputError: no checkpoint is sound, or its settings are not those of `args`.
    """
    saved, lines = on_main(_newest_sound, folder, args, training)
    _restore(saved, training)
    return _run_state(saved), lines


def _run_state(saved: dict[str, Any]) -> RunState:
    return RunState(saved["config"], saved["rows"], EpochProgress(**saved["progress"]))


def _restore(saved: dict[str, Any], training: Training) -> None:
    training.load_state_dict(saved["training"])
    restore_random_states(saved["random"])


def _newest_sound(folder: Path, args: UserInput, training: Training) -> tuple[dict[str, Any], list[str]]:
    with writing(folder):
        for unfinished in (folder / CHECKPOINTS).glob("*.tmp"):
            unfinished.unlink()
    lines: list[str] = []
    config, newest = read_config(folder), None
    agree(args, config, folder)
    read = partial(_read_sound, identity=config["id"], args=args, training=training)
    for path in reversed(checkpoint_files(folder)):
        if newest := read(path, lines):
            break
    best = read(best_file(folder), lines) if best_file(folder).exists() else None
    if best and (newest is None or len(best["rows"]) > len(newest["rows"])):
        newest, path = best, best_file(folder)
        lines.append(f"{path.name} is the newest sound checkpoint")
        with writing(folder):  # so that it is not the only one
            write_atomically(folder / CHECKPOINTS / _run_state(best).checkpoint_name(), path.read_bytes())
    if newest is None:
        raise InputError(f"resume: no checkpoint in {folder} is sound: {'; '.join(lines)}")
    return newest, lines + _mend_best(folder, newest, best, read)


def agree(args: UserInput, config: dict[str, Any], source: Path) -> None:
    """Raise `InputError` where the settings that define a run's figures are not those that `source` has."""
    saved = saved_settings(config, source)
    if args.precision == "auto":  # which the run has settled
        args = dataclasses.replace(args, precision=saved.precision)
    if differences := contradictions(args, saved):
        raise InputError(f"resume: the settings contradict those of {source}: {'; '.join(differences)}")


def _read_sound(
    path: Path, lines: list[str], identity: str, args: UserInput, training: Training
) -> dict[str, Any] | None:
    """What the file holds, where `training` can take it in, and has; else None, and the reason among the `lines`."""
    try:
        saved = read_checkpoint(path)
        if saved["config"]["id"] != identity:
            raise InputError("it is another run's")
        agree(args, saved["config"], path)
        check_form(saved, training)
        _restore(saved, training)
    except Exception as error:  # a damaged file fails in whichever way its bytes happen to
        reason = " ".join(str(error).split())[:200]
        lines.append(f"{path.name} was passed over: {type(error).__name__}, {reason}")
        return None
    return saved


def _mend_best(
    folder: Path, newest: dict[str, Any], best: dict[str, Any] | None, read: Callable[..., dict[str, Any] | None]
) -> list[str]:
    """See to it that best.pt is the best epoch: the kill may have come before it was written. Gives lines on that."""
    state = _run_state(newest)
    done = state.rows[: state.best_epoch or 0]
    if not done or (best and _ends(best["rows"]) == _ends(done)):
        return []
    source = next((path for path in checkpoint_files(folder) if position(path) == (len(done), 0)), None)
    saved = read(source, []) if source else None
    if source is None or saved is None or _ends(saved["rows"]) != _ends(done):
        return [f"the network of epoch {len(done)}, the best so far, is in no checkpoint any more"]
    with writing(best_file(folder)):
        write_atomically(best_file(folder), source.read_bytes())
    return [f"{best_file(folder).name} was made again from {source.name}"]


def has_best(folder: Path, state: RunState) -> bool:
    """Whether best.pt, where there is to be one, is the best epoch; raises whatever a damaged file happens to."""
    done = state.rows[: state.best_epoch or 0]
    return not done or _ends(read_checkpoint(best_file(folder))["rows"]) == _ends(done)


def _ends(rows: list[dict[str, Any]]) -> list[float]:
    """When each epoch was done, which tells it from the same epoch done again."""
    return [row["finished"] for row in rows]


def check_form(saved: dict[str, Any], training: Training) -> None:
    """Raise where a checkpoint, though whole, is not the state of such a run: it may have been made to do harm.

    Raises:
        ValueError: naming what is wrong, or whatever else its content happens to lead to.
    """
    state, fresh, given = _run_state(saved), training.state_dict(), saved["training"]
    check_state(state)
    _check_like(given["model"], fresh["model"], "model")
    _check_optimizer(given["optimizer"], training.optimizer)
    rates = [0.0] * len(training.optimizer.param_groups)
    _check_like(given["scheduler"], {"last_epoch": 0, "base_lrs": rates, "_last_lr": rates}, "scheduler")
    done = state.epochs_done
    if training.rate_by_step:
        done = done * training.steps_per_epoch + state.progress.steps
    _check(given["scheduler"]["last_epoch"] == done, "the schedule is at another epoch")
    _check_like(given.get("average", {}), fresh["average"], "average")
    if given["scaler"]:  # empty where there is no loss scaling, which is the device's affair
        _check_like(given["scaler"], fresh["scaler"], "scaler")
    _check(0 <= saved["random"]["numpy"][2] <= 624, "the state of NumPy's generator is none")  # NumPy does not look


def check_state(state: RunState) -> None:
    """Raise `ValueError`, or whatever else it leads to, where what a checkpoint says beside its network is no run's."""
    _check_like(state.config, CONFIG_FORM, "config")
    row_form = ROW_FORM | (VALIDATION_FORM if state.config["data"]["validation_images"] else {})
    for number, row in enumerate(state.rows, 1):
        further = {name: like for name, like in FURTHER_FORM.items() if name in row}
        _check_like(row, row_form | further, f"epoch {number}")
        own = set(row) == set(row_form | further) and row["epoch"] == number
        _check(own, f"the figures of epoch {number} are not its own")
    json.dumps([state.config, state.rows], ensure_ascii=False).encode()  # as they will be written
    progress = dataclasses.asdict(state.progress)
    _check_like(progress, dataclasses.asdict(EpochProgress()), "progress")
    _check(progress["steps"] >= 0, "progress.steps is below zero")


def _check_optimizer(given: dict[str, Any], optimizer: optim.Optimizer) -> None:
    groups = optimizer.state_dict()["param_groups"]
    _check(len(given["param_groups"]) == len(groups), "the optimizer has other groups")
    for group, fresh in zip(given["param_groups"], groups, strict=True):
        _check_like(group, {"lr": 0.0, "params": fresh["params"]}, "optimizer")
        # all but the rate follows from the settings; a version of PyTorch may have options that another has not
        for name in group.keys() & fresh.keys() - {"lr"}:
            _check(group[name] == fresh[name], f"the optimizer's {name} is not that of the settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in given["state"].items():
        _check(index in range(len(parameters)), "the optimizer has state of a parameter that is not there")
        _check(
            set(values) == OPTIMIZER_STATE[type(optimizer)], f"the optimizer's state of parameter {index} is another"
        )
        for name, value in values.items():
            like = torch.zeros(()) if name == "step" else parameters[index].detach()
            if value is not None or name != "momentum_buffer":  # None: sgd without momentum
                _check_like(value, like, f"optimizer.{index}.{name}")


def _check_like(value: Any, like: Any, where: str) -> None:
    """Refuse what has not the type of `like`, its keys (others are let be), its length, or its shape and dtype."""
    if isinstance(like, Tensor):
        fits = isinstance(value, Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
        _check(fits, f"{where} is no tensor of shape {tuple(like.shape)} and {like.dtype}")
        return
    kinds = (int, float) if type(like) is float else (type(like),)
    _check(type(value) in kinds, f"{where} is {type(value).__name__}")
    if type(value) is int:
        _check(abs(value) < 2**63, f"{where} is too large")
    elif isinstance(like, dict):
        for name, part in like.items():
            _check(name in value, f"{where}.{name} is missing")
            _check_like(value[name], part, f"{where}.{name}")
    elif isinstance(like, list) and like:
        _check(len(value) == len(like), f"{where} has {len(value)} entries and not {len(like)}")
        for part, other in zip(value, like, strict=True):
            _check_like(part, other, where)


def _check(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at any moment there is the old one or the new one, whole, and after a power cut too."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_SYNC:
                raise
        finally:
            os.close(descriptor)


def random_states() -> dict[str, Any]:
    """The states of all the global generators, in types that are loaded without code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators where `random_states` found them; those of GPUs only where there are as many."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
