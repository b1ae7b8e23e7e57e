"""The runs of experiments: what each is called, what it is made of, where it lies, and carrying it out.

A run is a variation (settings that differ from the pinned ones, perhaps another network), a seed, and the conditions
under which it is compared with others (data, device, precision, scale). These three are its folder:

    results/logs/<conditions>/<variation>/seed-<seed>/<Lambda|Baseline>/<run folder of main_general.py>/

so a run that several experiments ask for is one run. Its state is read off that folder and nowhere else (`records.py`).
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from command_line.errors import InputError, one_line_errors
from command_line.paths import LOGS, project_path
from data_preprocessing import training_count
from evidence.networks import NETWORKS
from evidence.pinned import pinned
from evidence.records import FAILURE, Record, read_record
from main_general import main
from model_preparation import MakeModel, build_model
from nntrain import NonFinite
from run_state.board import drop_embeddings
from run_state.checkpoints import write_atomically
from run_state.run_folder import CHECKPOINTS, checkpoint_files, locked
from user_input import FREE_ON_RESUME, NOT_FLIPPED, UserInput

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}  # of data sets, beside figures
OUTPUT = "output.txt"  # what a run's process printed; not committed
FIELDS = {field.name: field for field in dataclasses.fields(UserInput)}
PINNED = pinned()


@dataclass(frozen=True)
class Variation:
    """What a run changes of the values that are pinned; made by `vary`, so that equal ones compare as equal."""

    settings: tuple[tuple[str, Any], ...]  # in the order of `UserInput`, none of them at its pinned value
    network: str | None = None  # a name in `NETWORKS`
    title: str | None = None  # its folder's name, where it is not made of all that it changes

    @property
    def name(self) -> str:
        """Its folder's name, such as `lambda_stem-cifar_scope-7`: all that it changes."""
        if self.title:
            return self.title
        settings = dict(self.settings)
        parts = [self.network or settings.get("model", PINNED["model"])]
        for name, value in settings.items():
            if isinstance(value, bool):
                parts.append(name if value else f"no-{name}")
            elif name != "model":
                parts.append(f"{name}-{value}")
        return "_".join(parts)

    @property
    def make_model(self) -> MakeModel:
        return NETWORKS[self.network] if self.network else build_model


def vary(network: str | None = None, title: str | None = None, **settings: Any) -> Variation:
    """The variation of these settings, written in one way: `stages="CCCC"` is the baseline, `LLLL` needs no mention."""
    if network is None and settings.get("stages") == "CCCC":
        settings |= {"model": "baseline"}
    word = UserInput(**PINNED | {"model": settings.get("model", PINNED["model"])}).stage_word
    if settings.get("stages") == word:
        settings.pop("stages")
    changed = [(name, settings[name]) for name, usual in PINNED.items() if settings.get(name, usual) != usual]
    if unknown := settings.keys() - FIELDS.keys():
        raise InputError(f"{', '.join(sorted(unknown))}: no such setting")
    return Variation(tuple(changed), network, title)


@dataclass(frozen=True)
class Conditions:
    """What all the runs have in common that are compared with each other."""

    dataset: str
    data_dir: str
    data: str  # the data set's name as it stands beside every figure
    device: str  # as for `UserInput`, settled
    precision: str  # likewise
    epochs_scale: float = 1.0  # share of the epochs
    images_scale: float = 1.0  # share of the training images
    root: Path = LOGS

    @property
    def name(self) -> str:
        """Their folder's name, such as `cifar-10_cuda_bf16_full`."""
        data = re.sub(r"[^a-z0-9]+", "-", self.data.lower()).strip("-")
        return f"{data}_{torch.device(self.device).type}_{self.precision}_{self.scale}"

    @property
    def scale(self) -> str:
        if (self.epochs_scale, self.images_scale) == (1.0, 1.0):
            return "full"
        return f"scale-{self.epochs_scale:g}-{self.images_scale:g}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def command(self, *words: str, jobs: int) -> str:
        """The command line with these words under these conditions, with so many runs at once."""
        parts = list(words)
        if self.scale != "full":
            parts += ["--scale", f"{self.epochs_scale:g}", f"{self.images_scale:g}"]
        if self.dataset != "cifar10":
            parts += ["--dataset", self.dataset]
        if self.data_dir != FIELDS["data_dir"].default:
            parts += ["--data_dir", self.data_dir]
        if self.data != NAMES.get(self.dataset):
            parts += ["--data_name", self.data]
        parts += ["--device", torch.device(self.device).type, "--precision", self.precision]
        if jobs > 1:
            parts += ["--jobs", str(jobs)]
        return "python experiments.py " + shlex.join(parts)


@dataclass(frozen=True)
class Run:
    """One variation with one seed under its conditions."""

    variation: Variation
    seed: int
    conditions: Conditions

    @property
    def folder(self) -> Path:
        return self.conditions.folder / self.variation.name / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        return f"{self.variation.name} seed {self.seed}"

    @cached_property
    def args(self) -> UserInput:
        """The settings of the run, at its scale."""
        conditions = self.conditions
        own = {
            "seed": self.seed,
            "dataset": conditions.dataset,
            "data_dir": conditions.data_dir,
            "device": conditions.device,
            "precision": conditions.precision,
            "runs_dir": project_path(str(self.folder)),
            # an epoch on a CPU is minutes, and one on a GPU is not much longer than writing a checkpoint
            "checkpoint_every": 1 if conditions.device == "cpu" else PINNED["checkpoint_every"],
        }
        if conditions.dataset in NOT_FLIPPED:
            own["test_flips"] = False
        args = UserInput(**PINNED | dict(self.variation.settings) | own)
        scaled: dict[str, Any] = {"epochs": max(1, round(args.epochs * conditions.epochs_scale))}
        if conditions.images_scale != 1.0:
            scaled["training_images"] = round(training_count(args) * conditions.images_scale)
        return dataclasses.replace(args, **scaled)

    def record(self) -> Record | None:
        """What there is of the run.

        Raises:
            InputError: it was run with other settings than it has now.
        """
        record = read_record(self.folder)
        if record:
            self._check(record.config)
        return record

    def _check(self, config: dict[str, Any]) -> None:
        there = config["settings"] | {"network": config["experiment"]["network"], "data": config["experiment"]["data"]}
        here = dataclasses.asdict(self.args) | {"network": self.variation.network, "data": self.conditions.data}
        # the same images may lie in an archive or as files: what is done counts
        kinds = {"dataset"} if here["data"] == there["data"] else set()
        for name in here.keys() & there.keys() - FREE_ON_RESUME - kinds:
            if here[name] != there[name]:
                raise InputError(
                    f"{self.folder} was run with {name} {there[name]}, and it is {here[name]} now; for runs of your "
                    "own, take --runs_dir"
                )


# ------------------------------------------------------------------------------------------------ carrying it out


def carry_out(run: Run, facts: dict[str, Any] | None = None, keep_checkpoints: bool = False) -> int | None:
    """Do a run, or the rest of it; what ends it for good is written down.

    Args:
        facts: further entries of config.json.
        keep_checkpoints: do not delete the checkpoints of a run that is done, and the pictures of its embeddings.

    Returns:
        The signal that has stopped it; None where there is no more to do.

    Raises:
        InputError: something the user can mend; or another process is at this run.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder):
        record = run.record()
        if record and record.state != "cut off":
            return None
        args = run.args
        if record and checkpoint_files(record.folder):
            args = dataclasses.replace(args, resume=str(record.folder))
        else:  # what was killed before its first checkpoint begins anew
            for group in run.folder.iterdir():
                if group.is_dir():  # the lock and what was printed stay
                    shutil.rmtree(group)
        try:
            result = main(args, run.variation.make_model, facts)
        except NonFinite as error:
            _write_failure(run, "diverged", error)
        except torch.OutOfMemoryError as error:
            _write_failure(run, "out of memory", error)
        else:
            if result.stopped_by is not None:
                return result.stopped_by
    if not keep_checkpoints:
        for folder in run.folder.glob("*/*"):
            if folder.is_dir():
                drop_embeddings(folder)
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return None


def _write_failure(run: Run, kind: str, error: Exception) -> None:
    failure = {"kind": kind, "message": " ".join(str(error).split())}
    write_atomically(run.folder / FAILURE, (json.dumps(failure, indent=2) + "\n").encode())


def work(run: Run, threads: int | None, facts: dict[str, Any], keep_checkpoints: bool) -> None:
    """`carry_out` in a process of its own, whose output goes to a file; ends it with 128 + the signal that stopped it.

    Args:
        threads: for the CPU; None leaves PyTorch's number.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / OUTPUT, "a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    if threads:
        torch.set_num_threads(threads)
    with one_line_errors():
        stopped_by = carry_out(run, facts, keep_checkpoints)
    raise SystemExit(0 if stopped_by is None else 128 + stopped_by)
