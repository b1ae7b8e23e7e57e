"""Say what a trained network sees in images of your own.

    python predict.py cat.jpg holiday --checkpoint runs/Lambda/<run> --csv seen.csv

    image                 class                confidence
    cat.jpg               cat                     93.10 %
                          dog                      4.25 %

Files, or folders with all the images in and below them. The reader is that of the training, so a file of the run's test
is seen as the test saw it: photographs are turned as their EXIF data say, animations give their first picture, what is
transparent lies on white, more than 8 bits are scaled. Of any size, the network sees what it saw of a test image. A
confidence is the share that the softmax gives to a class; it is not the chance of being right, and an image of no class
that the network knows gets one too.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from command_line import errors
from command_line.errors import InputError, Parser, one_line_errors
from command_line.paths import printable
from data_sources.folders import images_below, left_out_line
from data_sources.images import is_bad, read_image
from run_state.trained_network import TrainedNetwork, load_network

BATCH = 32  # images that the network sees at once

Predictions = list[tuple[str, float]]  # classes, the likeliest first, each with its share in 0..1


def main(argv: list[str] | None = None) -> None:
    """Print a table of the images that the command line names."""
    arguments = read_arguments(argv)
    network = load_network(arguments.checkpoint)
    paths = image_paths(arguments.images)
    names = [printable(path) for path in paths]
    widths = [max(map(len, words)) for words in (["image", *names], ["class", *network.classes])]
    row = f"{{:{widths[0]}}}  {{:{widths[1]}}}  {{:>10}}".format
    found: list[tuple[str, Predictions]] = []
    print(row("image", "class", "confidence"))
    for path, predictions in predict_files(network, paths, arguments.top, arguments.batch_size, arguments.skip_bad):
        name = printable(path)
        found.append((name, predictions))
        for label, confidence in predictions:
            print(row(name, label, f"{100 * confidence:.2f} %"))
            name = ""
    if len(found) < len(paths):
        print(f"{len(paths) - len(found)} of {len(paths)} images skipped")
    if arguments.csv:
        write_csv(arguments.csv, found)


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says; raises `InputError` for what it must not say."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files, and folders of them")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name for each image (default: 3)")
    parser.add_argument("--batch_size", type=int, default=BATCH, help=f"images seen at once (default: {BATCH})")
    parser.add_argument("--skip_bad", action="store_true", help="go on past images that cannot be read, and name them")
    parser.add_argument("--csv", type=Path, help="a file to write the same table to: image, class, confidence")
    arguments = parser.parse_args(argv)
    for name in ("top", "batch_size"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}: {getattr(arguments, name)} is not allowed; takes a whole number, at least 1")
    return arguments


def image_paths(given: Sequence[Path]) -> list[str]:
    """The files that are named, and all the images in folders that are.

    Raises:
        InputError: there is no such file, or no image in a folder.
    """
    paths: list[str] = []
    for path in given:
        if not path.is_dir():
            if not path.is_file():
                raise InputError(f"images: there is no file {path}")
            paths.append(str(path))
            continue
        try:
            below, left_out = images_below(path)
        except OSError as error:
            raise InputError(f"images: {path} cannot be read ({error.strerror})") from error
        line = left_out_line(left_out)
        if not below:
            raise InputError(f"images: {path} holds no image{f' ({line})' if line else ''}")
        if line:
            errors.tell(f"{path}: {line}")
        paths += below
    return paths


def predict_files(
    network: TrainedNetwork, paths: Sequence[str], top: int = 3, batch_size: int = BATCH, skip_bad: bool = False
) -> Iterator[tuple[str, Predictions]]:
    """Each file and what the network sees in it, `batch_size` at once.

    Raises:
        InputError: one cannot be read; with `skip_bad` a line on standard error names it, and it is left out.
    """
    for first in range(0, len(paths), batch_size):
        read: list[str] = []
        images: list[Image.Image] = []
        for path in paths[first : first + batch_size]:
            try:
                images.append(network.view(read_image(path, network.whites, "images")))
                read.append(path)
            except InputError as error:
                if not (skip_bad and is_bad(error)):
                    raise
                errors.tell(f"skipped: {str(error).removeprefix('images: ')}")
        if images:
            yield from zip(read, predict_views(network, images, top), strict=True)


def predict(network: TrainedNetwork, image: Image.Image, top: int = 3) -> Predictions:
    """The likeliest classes of an RGB image of any size."""
    return predict_views(network, [network.view(image)], top)[0]


def predict_views(network: TrainedNetwork, images: Sequence[Image.Image], top: int) -> list[Predictions]:
    """The likeliest classes of each of several images of s × s pixels."""
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images]))  # (b, s, s, 3) uint8
    with torch.inference_mode():
        logits = network.model(network.normalisation.apply(pixels))  # (b, classes)
    shares, indices = logits.softmax(1).topk(min(top, len(network.classes)))
    rows = zip(indices.tolist(), shares.tolist(), strict=True)
    return [[(network.classes[i], share) for i, share in zip(*row, strict=True)] for row in rows]


def write_csv(path: Path, found: Sequence[tuple[str, Predictions]]) -> None:
    """Write a row for each image and each of its likeliest classes; raises `InputError` where it cannot be."""
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", "confidence"])
            writer.writerows((name, label, f"{share:.6f}") for name, shares in found for label, share in shares)
    except OSError as error:
        raise InputError(f"csv: {path} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    with one_line_errors():
        main()
