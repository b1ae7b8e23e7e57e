"""Checkpoints: where a run stands, written so that no interruption leaves a damaged one, and read without code.

A file is written under a temporary name, synced, and renamed; the one before it is kept. `weights_only=True`
throughout: a checkpoint from a stranger is data, not a program.
"""

import dataclasses
import io
import os
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distributed import on_main
from errors import InputError
from model_preparation import Training
from nntrain import EpochProgress
from run_folder import CHECKPOINTS, checkpoint_files, read_config, writing
from user_input import UserInput, contradictions, from_saved

KEPT = 2  # newest checkpoints that stay: should the last one be damaged, there is one before it


@dataclass
class RunState:
    """Where a run stands, beside its network: what a checkpoint says in words and figures."""

    config: dict[str, Any]  # as in config.json
    rows: list[dict[str, Any]] = field(default_factory=list)  # as in metrics.jsonl, one for each epoch that is done
    progress: EpochProgress = field(default_factory=EpochProgress)  # of the epoch that was begun

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    def checkpoint_name(self) -> str:
        """Names sort as the states do."""
        step = f"_step{self.progress.steps:07d}" if self.progress.steps else ""
        return f"epoch{self.epochs_done:04d}{step}.pt"


def save_checkpoint(folder: Path, state: RunState, training: Training) -> Path:
    """Write the state of a run into its folder and let go of all but the newest `KEPT` checkpoints.

    Raises:
        InputError: it could not be written; the checkpoints before it are as they were.
    """
    buffer = io.BytesIO()
    saved = {**dataclasses.asdict(state), "training": training.state_dict(), "random": random_states()}
    torch.save(saved, buffer)
    path = folder / CHECKPOINTS / state.checkpoint_name()
    with writing(path):
        write_atomically(path, buffer.getbuffer())
        for old in checkpoint_files(folder)[:-KEPT]:
            old.unlink()
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU; raises whatever a damaged file happens to."""
    with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums that torch.save writes
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(folder: Path, args: UserInput, training: Training) -> tuple[RunState, list[str]]:
    """Put `training` and the random states where the newest sound checkpoint of a run left them.

    Returns:
        The run's state, and a line for each newer checkpoint that was passed over, damaged or another run's, and why.

    Of several processes, rank 0 reads for all of them.

    Raises:
        InputError: no checkpoint is sound, or its settings are not those of `args`.
    """
    saved, passed_over = on_main(_newest_sound, folder, args)
    training.load_state_dict(saved["training"])
    restore_random_states(saved["random"])
    return _run_state(saved), passed_over


def _run_state(saved: dict[str, Any]) -> RunState:
    return RunState(saved["config"], saved["rows"], EpochProgress(**saved["progress"]))


def _newest_sound(folder: Path, args: UserInput) -> tuple[dict[str, Any], list[str]]:
    with writing(folder):
        for unfinished in (folder / CHECKPOINTS).glob("*.tmp"):
            unfinished.unlink()
    identity, passed_over = read_config(folder)["id"], []
    for path in reversed(checkpoint_files(folder)):
        try:
            saved = read_checkpoint(path)
            state = _run_state(saved)
            if state.config["id"] != identity:
                raise InputError("it is another run's")
        except Exception as error:  # a damaged file fails in whichever way its bytes happen to
            reason = " ".join(str(error).split())[:200]
            passed_over.append(f"{path.name} was passed over: {type(error).__name__}, {reason}")
            continue
        if differences := contradictions(args, from_saved(state.config["settings"], path)):
            raise InputError(f"resume: the settings contradict those of {folder}: {'; '.join(differences)}")
        return saved, passed_over
    raise InputError(f"resume: no checkpoint in {folder} is sound: {'; '.join(passed_over)}")


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
        finally:
            os.close(descriptor)


def random_states() -> dict[str, Any]:
    """The states of all the global generators, in types that are loaded without code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
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
