"""A trained network for use: from any checkpoint, with its classes and what its images have to go through."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from command_line import errors
from command_line.errors import InputError
from command_line.paths import shown
from data_preprocessing import centre_view
from data_sources.normalisation import Normalisation
from data_sources.pixels import Whites
from model_preparation import build_model, evaluation_logits
from run_state.checkpoints import read_checkpoint
from run_state.run_folder import (
    CHECKPOINTS,
    GROUPS,
    best_file,
    checkpoint_files,
    find_run,
    group_folder,
    read_config,
)
from run_state.saved_settings import saved_settings
from user_input import UserInput

LATEST = Path("latest")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode on the CPU, and what its run knew about it."""

    model: nn.Module  # normalised images (b, 3, s, s) -> logits (b, classes)
    args: UserInput
    classes: tuple[str, ...]
    normalisation: Normalisation
    epochs_done: int
    view: Callable[[Image.Image], Image.Image]  # an RGB image of any size -> s × s pixels, as in the run's test
    whites: Whites  # what was white in the run's images of more than 8 bits
    file: Path  # the checkpoint
    config: dict[str, Any]  # what the run says of itself, as in config.json

    @property
    def title(self) -> str:
        """Such as `λ-ResNet-50, digits, after epoch 5, Nov25_12-09-29_lr0.0005_host`."""
        run = self.file.absolute().parent.parent if self.file.parent.name == CHECKPOINTS else self.file
        kind = "λ-ResNet" if self.args.model == "lambda" else "ResNet"
        return f"{kind}-{self.args.depth}, {self.args.dataset}, after epoch {self.epochs_done}, {run.name}"

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalised images (b, 3, s, s) -> (b, classes), as in the run's test."""
        return evaluation_logits(self.model, pixels, self.args.test_flips)

    def as_drawn(self) -> nn.Module:
        """The network as it was before its first step: drawn once more, by the run's seed."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.args.seed)
            return build_model(self.args, len(self.classes))


def load_network(path: Path) -> TrainedNetwork:
    """The network of a checkpoint, or of the newest sound one of a run: its folder, or that of its checkpoints.

    `latest` is the newest run. No code of the file is run. A line on standard error tells which run was taken for the
    newest, and of a checkpoint that was passed over.

    Raises:
        InputError: there is none, or none of this project.
    """
    if path == LATEST and not path.exists():
        path = latest_run(UserInput().runs_path)
        errors.tell(f"latest: {shown(path)}")
    if not path.is_dir():
        return _load(path)
    folder = path.absolute().parent if path.name == CHECKPOINTS else path
    files = [*([best_file(folder)] if best_file(folder).exists() else []), *checkpoint_files(folder)]
    for newest in reversed(files):
        try:
            return _load(newest)
        except InputError as error:
            if newest == files[0]:
                raise
            errors.tell(f"{newest.name} was passed over: {str(error).removeprefix('checkpoint: ')}")
    raise InputError(f"checkpoint: {path} holds no checkpoint; takes a file epoch<number>.pt, or a run's folder")


def latest_run(runs: Path) -> Path:
    """The folder of the run that began last, of either model.

    Raises:
        InputError: there is none with a checkpoint.
    """
    newest = []
    for model in GROUPS:
        with suppress(InputError):  # there is none of this model
            newest.append(find_run(group_folder(runs, model)))
    if not newest:
        raise InputError(f"checkpoint: latest is no run, since there is none with a checkpoint in {runs}")
    return max(newest, key=lambda folder: str(read_config(folder).get("started")))


def _load(path: Path) -> TrainedNetwork:
    if not path.is_file():
        raise InputError(f"checkpoint: there is no file {path}; takes a file epoch<number>.pt, or a run's folder")
    try:
        saved = read_checkpoint(path)
        return _rebuild(saved, path)
    except InputError as error:
        raise InputError(f"checkpoint: {str(error).removeprefix('resume: ')}") from error
    except Exception as error:  # a damaged file, or another project's, fails in whichever way its bytes happen to
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint: {path} is damaged, or no checkpoint of this version of the project "
            f"({type(error).__name__}: {reason})"
        ) from error


def _rebuild(saved: dict[str, Any], path: Path) -> TrainedNetwork:
    config = saved["config"]
    args, data = saved_settings(config, path), config["data"]
    model = build_model(args, len(data["classes"]))
    model.load_state_dict(saved["training"]["model"])
    return TrainedNetwork(
        model=model.eval(),
        args=args,
        classes=tuple(map(str, data["classes"])),
        normalisation=Normalisation(tuple(data["mean"]), tuple(data["std"])),
        epochs_done=len(saved["rows"]),
        view=centre_view(args),
        whites={str(kind): float(white) for kind, white in data.get("whites", {}).items()},
        file=path,
        config=config,
    )


class Classifier(nn.Module):
    """A trained network that normalises: RGB pixels in 0..1, (b, 3, s, s) -> logits (b, classes)."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, network: TrainedNetwork) -> None:
        super().__init__()
        self.model = network.model
        self.flips = network.args.test_flips
        self.register_buffer("mean", torch.tensor(network.normalisation.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(network.normalisation.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return evaluation_logits(self.model, (pixels - self.mean) / self.std, self.flips)
