"""The command lines of what is done with a checkpoint, apart from it: so they are read before PyTorch is loaded."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from command_line.errors import InputError, Parser

CHECKPOINT_HELP = "a checkpoint, a run's folder, or latest: the newest run in the runs' folder of user_input.py"
BATCH = 32  # images that a network sees at once in predict.py
PICTURES = (".png", ".jpg", ".pdf", ".svg")
MOST_PICTURED = 24  # images in a picture of predict.py's
EXPORTS = (".onnx", ".pt2")
WRITE_ONNX = ("onnx", "onnxscript")  # packages that PyTorch needs for it


def read_predict(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What predict.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    parser.add_argument("images", nargs="+", type=Path, help="image files, and folders of them")
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--top", type=int, default=3, help="how many classes to name for each image (default: 3)")
    parser.add_argument("--batch_size", type=int, default=BATCH, help=f"images seen at once (default: {BATCH})")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="write the same to a file as well: *.csv for the table, *.png, *.jpg, *.pdf or *.svg for a picture of the "
        f"first {MOST_PICTURED} images with their bars; may be given twice",
    )
    arguments = parser.parse_args(argv)
    for name in ("top", "batch_size"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}: {getattr(arguments, name)} is not allowed; takes a whole number, at least 1")
    for path in arguments.out:
        if path.suffix.lower() not in (".csv", *PICTURES):
            raise InputError(f"out: {path} is not allowed; takes a name that ends in .csv, {', '.join(PICTURES)}")
        _check_file("out", path)
    return arguments


def read_draw(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What draw_embeddings.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the pictures into")
    arguments = parser.parse_args(argv)
    _check_folder("out", arguments.out)
    return arguments


def read_export(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What export_model.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--to", type=Path, required=True, help="the file to write: *.onnx or *.pt2")
    arguments = parser.parse_args(argv)
    if arguments.to.suffix not in EXPORTS:
        raise InputError(f"to: {arguments.to} is not allowed; {_no_export(arguments.to)}")
    _check_file("to", arguments.to)
    if arguments.to.suffix == ".onnx" and (missing := [name for name in WRITE_ONNX if find_spec(name) is None]):
        raise InputError(f"to: {arguments.to} needs other packages: pip install {' '.join(missing)}; .pt2 needs none")
    return arguments


def _check_file(name: str, path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it."""
    if os.path.isdir(path):  # `Path.is_dir` raises where a folder above it must not be entered
        raise InputError(f"{name}: {path} is a folder; takes a file's name")
    if not os.path.isdir(path.absolute().parent):
        raise InputError(f"{name}: there is no folder {path.absolute().parent}")


def _check_folder(name: str, path: Path) -> None:
    """Likewise a folder that is to be made."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{name}: {path} is a file; takes a folder's name")


def _no_export(path: Path) -> str:
    """What is to be typed in place of a file of that name."""
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return (
            "weights alone need this project's code, and lie in the checkpoint already: "
            'torch.load(checkpoint, weights_only=True)["training"]["model"]; to do without the code, take .onnx or .pt2'
        )
    return "takes a file name that ends in .onnx or .pt2"


def read_test(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What nntest.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--dataset", help="another data set than the run's, with classes of the same names")
    parser.add_argument("--data_dir", help="another folder than the run's: its own images, moved, or other ones")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<index> or mps (default: auto)")
    parser.add_argument("--precision", help="auto, fp32, bf16 or fp16 (default: the run's)")
    parser.add_argument("--batch_size", type=int, help="images seen at once (default: the run's)")
    parser.add_argument("--workers", type=int, help="processes that load images (default: the run's)")
    parser.add_argument("--out", type=Path, help="folder for the files (default: tests/<checkpoint> of the run)")
    arguments = parser.parse_args(argv)
    if arguments.out is not None:
        _check_folder("out", arguments.out)
    return arguments


def _parser(description: str | None) -> Parser:
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
