"""Say what a trained network sees in images of your own.

    python predict.py cat.jpg --checkpoint latest --out seen.csv

    image    class       confidence
    cat.jpg  cat            93.10 %  ███████████████████
             dog             4.25 %  █
             frog            1.02 %
    seen.csv

Files, or folders with all the images in and below them. `latest` is the newest run in the runs' folder that
`user_input.py` names. An image that cannot be read is told, the others go on, and the exit code is 1.

The reader is that of the training, so a file of the run's test is seen as the test saw it: photographs are turned as
their EXIF data say, animations give their first picture, what is transparent lies on white, more than 8 bits are
scaled. Of any size, the network sees what it saw of a test image. A confidence is the share that the softmax gives to a
class; it is not the chance of being right, and an image of no class that the network knows gets one too.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import one_line_errors
from command_line.tools import read_predict

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_predict(__doc__)

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from acceleration.devices import enough_memory
from command_line import errors
from command_line.errors import InputError
from command_line.paths import printable, shown
from command_line.tools import BATCH, MOST_PICTURED
from data_sources.folders import images_below, left_out_line
from data_sources.images import is_bad, read_image
from run_state.trained_network import TrainedNetwork, load_network
from scoring.confusion import drawable, labels

BAR = 20  # characters for a confidence of 100 %
ACROSS = 3  # images beside one another in a picture

Predictions = list[tuple[str, float]]  # classes, the likeliest first, each with its share in 0..1


class Seen(NamedTuple):
    """A file, what the network saw of it (s × s pixels), and what it said."""

    path: str
    view: Image.Image
    predictions: Predictions


@enough_memory()
def main(argv: list[str] | None = None) -> int:
    """Print a table of the images that the command line names; the exit code is 1 where one could not be read."""
    arguments = read_predict(__doc__, argv)
    network = load_network(arguments.checkpoint)
    paths = image_paths(arguments.images)
    widths = [max(map(len, words)) for words in (["image", *map(printable, paths)], ["class", *network.classes])]
    row = f"{{:{widths[0]}}}  {{:{widths[1]}}}  {{:>10}}  {{}}".format
    found: list[tuple[str, Predictions]] = []
    pictured: list[Seen] = []
    print(row("image", "class", "confidence", "").rstrip())
    for seen in predict_files(network, paths, arguments.top, arguments.batch_size):
        name = printable(seen.path)
        found.append((name, seen.predictions))
        pictured += [seen] if len(pictured) < MOST_PICTURED else []
        for label, share in seen.predictions:
            print(row(name, label, f"{100 * share:.2f} %", "█" * round(BAR * share)).rstrip())
            name = ""
    for path in arguments.out:
        write(path, found, pictured, network)
        print(shown(path))
    bad = len(paths) - len(found)
    if bad:
        print(f"{bad} of {len(paths)} images could not be read")
    return min(bad, 1)


def image_paths(given: Sequence[Path]) -> list[str]:
    """The files that are named, and all the images in folders that are.

    Raises:
        InputError: there is no such file, or no image in a folder.
    """
    paths: list[str] = []
    for path in given:
        if not os.path.isdir(path):  # `Path.is_dir` raises where a folder above it must not be entered
            if not os.path.isfile(path):
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
    network: TrainedNetwork, paths: Sequence[str], top: int = 3, batch_size: int = BATCH
) -> Iterator[Seen]:
    """What the network sees in each file, `batch_size` at once; a line on standard error tells of one left out.

    Raises:
        InputError: memory does not suffice for an image.
    """
    for first in range(0, len(paths), batch_size):
        read: list[str] = []
        views: list[Image.Image] = []
        for path in paths[first : first + batch_size]:
            try:
                views.append(network.view(read_image(path, network.whites, "images")))
                read.append(path)
            except InputError as error:
                if not is_bad(error):
                    raise
                errors.tell(f"left out: {str(error).removeprefix('images: ')}")
        if views:
            yield from map(Seen, read, views, predict_views(network, views, top))


def predict(network: TrainedNetwork, image: Image.Image, top: int = 3) -> Predictions:
    """The likeliest classes of an RGB image of any size."""
    return predict_views(network, [network.view(image)], top)[0]


def predict_views(network: TrainedNetwork, images: Sequence[Image.Image], top: int) -> list[Predictions]:
    """The likeliest classes of each of several images of s × s pixels."""
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images]))  # (b, s, s, 3) uint8
    with torch.inference_mode():
        logits = network.logits(network.normalisation.apply(pixels))  # (b, classes)
    shares, indices = logits.softmax(1).topk(min(top, len(network.classes)))
    rows = zip(indices.tolist(), shares.tolist(), strict=True)
    return [[(network.classes[i], share) for i, share in zip(*row, strict=True)] for row in rows]


def write(path: Path, found: Sequence[tuple[str, Predictions]], seen: Sequence[Seen], network: TrainedNetwork) -> None:
    """Write the whole table, or the picture of the first images, as the path's ending says.

    Raises:
        InputError: it cannot be written.
    """
    try:
        if path.suffix.lower() != ".csv":
            picture(seen, network).savefig(path, dpi=110)
            return
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", "confidence"])
            writer.writerows((name, label, f"{share:.6f}") for name, shares in found for label, share in shares)
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror})") from error


def picture(seen: Sequence[Seen], network: TrainedNetwork) -> Figure:
    """Each image as the network saw it, and bars of its confidences."""
    names = dict(zip(network.classes, labels(network.classes), strict=True))
    down = max(1, -(-len(seen) // ACROSS))
    figure = Figure(figsize=(4 * ACROSS, 0.5 + 1.5 * down), layout="constrained")
    figure.suptitle(network.title, fontsize=9)
    grid = figure.subplots(down, 2 * ACROSS, squeeze=False, width_ratios=(2, 3) * ACROSS).reshape(-1, 2)
    for axes in grid.flat:
        axes.set_axis_off()
    for (left, right), one in zip(grid, seen, strict=False):
        left.imshow(np.array(one.view))
        name = Path(printable(one.path)).name
        name = drawable(name, ascii(name)[1:-1])
        left.set_title(name if len(name) <= 24 else f"{name[:23]}…", fontsize=7)
        _draw_bars(right, [(names[label], share) for label, share in one.predictions])
    return figure


def _draw_bars(axes: Axes, predictions: Predictions) -> None:
    places = range(len(predictions))
    axes.barh(places, [share for _, share in predictions], color="#56B4E9")
    axes.set(xlim=(0, 1), ylim=(max(3, len(predictions)) - 0.4, -0.6))
    for place, (label, share) in zip(places, predictions, strict=True):
        axes.text(0.02, place, f"{label}  {100 * share:.1f} %", va="center", fontsize=8)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
