"""Reading the weights that a training starts from: a run's, a file's, or torchvision's. No code of theirs is run."""

import http.client
import sys
import urllib.error
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    WeightsEnum,
)

from acceleration.distributed import one_before_the_others
from command_line.errors import InputError, summary
from fine_tuning.transfer import Weights, transfer
from run_state.checkpoints import check_archive
from run_state.trained_network import load_network
from user_input import TORCHVISION_WEIGHTS, UserInput

TORCHVISION: dict[int, type[WeightsEnum]] = {
    18: ResNet18_Weights,
    34: ResNet34_Weights,
    50: ResNet50_Weights,
    101: ResNet101_Weights,
    152: ResNet152_Weights,
}
INSIDE = ("state_dict", "model", "model_state_dict")  # names under which others' checkpoints keep the state dict
OF_THIS_PROJECT = {"config", "training"}
NAMES = ", ".join(TORCHVISION_WEIGHTS)
TAKES = f"takes a run's folder, a checkpoint, a state dict (.pt, .pth, .safetensors), or torchvision's {NAMES}"


def put_weights(args: UserInput, model: nn.Module, classes: Sequence[str]) -> dict[str, Any]:
    """Put the weights that `init_from` names, where it names any, into the model; what config.json says of that.

    Raises:
        InputError: they cannot be had, or nothing of them fits.
    """
    weights = read_weights(args)
    return {"init": transfer(weights, model, classes)} if weights else {}


def read_weights(args: UserInput) -> Weights | None:
    """Those that `init_from` names, on the CPU; None where it names none, or a run goes on.

    Raises:
        InputError: they cannot be had.
    """
    if args.init_from is None or args.resume is not None:
        return None
    if args.init_from in TORCHVISION_WEIGHTS:
        return Weights(args.init_from, _of_torchvision(args))
    path = args.init_path
    assert path is not None
    if path.is_dir():
        return _of_run(args.init_from, path)
    if not path.is_file():
        raise InputError(f"init_from: there is no file {path}; {TAKES}")
    if path.suffix == ".safetensors":
        return Weights(args.init_from, _safetensors(path))
    content = _read(path)
    if isinstance(content, Mapping) and content.keys() >= OF_THIS_PROJECT:
        return _of_run(args.init_from, path)
    return Weights(args.init_from, _state_dict(content, path))


def _of_run(source: str, path: Path) -> Weights:
    try:
        network = load_network(path)
    except InputError as error:
        raise InputError(f"init_from: {str(error).removeprefix('checkpoint: ')}") from error
    state, run = network.model.state_dict(), str(network.config["id"])
    return Weights(source, state, network.classes, run, network.epochs_done)


def _of_torchvision(args: UserInput) -> Mapping[str, Tensor]:
    """From `data_dir` where the file lies there, else from torchvision's cache, or by a download."""
    name = args.init_from
    depths = [depth for depth, kinds in TORCHVISION.items() if name in kinds.__members__]
    if args.depth not in depths:
        found = ", ".join(map(str, depths))
        raise InputError(f"init_from: torchvision has no {name} of depth {args.depth}; it has those of {found}")
    url = TORCHVISION[args.depth][name].url
    file = args.data_path / url.rpartition("/")[2]
    if file.is_file():
        return _state_dict(_read(file), file)
    try:
        with one_before_the_others():
            shown = sys.stderr.isatty()
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=shown, check_hash=True, weights_only=True
            )
    except (urllib.error.URLError, http.client.HTTPException, OSError, RuntimeError) as error:
        raise InputError(
            f"init_from: torchvision's {args.init_from} could not be downloaded ({summary(error)}); put {file.name} "
            f"from {url} into {file.parent}"
        ) from error


def _read(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):  # which torchvision's older files are not
            check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or another kind of one, fails in whichever way its bytes happen to
        raise InputError(f"init_from: {path} cannot be read ({summary(error)[:200]}); {TAKES}") from error


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file  # here, since it is not among the requirements
    except ImportError as error:
        raise InputError(f"init_from: {path} takes one more package: pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # its own, or the system's
        raise InputError(f"init_from: {path} cannot be read ({summary(error)[:200]})") from error


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict that a file holds, or one within what it holds."""
    inside = [content[name] for name in INSIDE if name in content] if isinstance(content, Mapping) else []
    for each in (content, *inside):
        if isinstance(each, Mapping) and any(isinstance(value, Tensor) for value in each.values()):
            return each
    raise InputError(f"init_from: {path} holds no state dict but a {type(content).__name__}; {TAKES}")
