"""All that is kept of a test, as files: `test.json`, tables (CSV) and pictures (PNG)."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data_sources.image_set import ImageSet
from scoring import confusion, mistakes
from scoring.evaluation import BINS, Evaluation

WEAKEST = 3  # classes that a line names

View = Callable[[Image.Image], Image.Image]  # an RGB image of any size -> as the network sees it in a test


@dataclass(frozen=True)
class ImagesOfTest:
    """What was tested: images, their classes in the network's order, and how the network sees them."""

    images: ImageSet
    classes: tuple[str, ...]
    view: View


def files(found: Evaluation, tested: ImagesOfTest, about: dict[str, Any]) -> dict[str, Callable[[], bytes]]:
    """The content of each file by its name, made when it is called; `about` heads test.json."""
    counts = partial(found.confusion_matrix, len(tested.classes))
    return {
        "test.json": lambda: (json.dumps(about | figures(found, tested.classes), indent=2) + "\n").encode(),
        "classes.csv": lambda: _classes(found, tested.classes),
        "predictions.csv": lambda: _predictions(found, tested),
        "mistakes.png": lambda: _png(_mistakes(found, tested)),
        "confusion.png": lambda: _png(confusion.as_figure(counts(), tested.classes)),
        "confusion.csv": lambda: confusion.as_csv(counts(), tested.classes),  # the last: with it, a run is whole
    }


def pixels(png: bytes) -> np.ndarray:
    """A PNG file's (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def figures(found: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """The figures of a test, as test.json has them; percent, and the calibration error in percentage points."""
    return {
        "images": found.images,
        "loss": _finite(found.loss),
        "top1": found.top1,
        "top5": found.top5,
        "calibration_error": _finite(found.calibration_error),
        "calibration_bins": BINS,
        "classes": {score.name: {"images": score.images, "top1": score.top1} for score in found.of_classes(classes)},
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def summary(found: Evaluation, classes: Sequence[str]) -> str:
    """`top-5 99.20 %, calibration error 2.31 points (15 bins); weakest classes: cat 70.10 %, …`."""
    scores = [(score.top1, score.name) for score in found.of_classes(classes) if score.top1 is not None]
    weakest = ", ".join(f"{name} {top1:.2f} %" for top1, name in sorted(scores)[:WEAKEST])
    top5 = "" if found.top5 is None else f"top-5 {found.top5:.2f} %, "
    return f"{top5}calibration error {found.calibration_error:.2f} points ({BINS} bins); weakest classes: {weakest}"


def _classes(found: Evaluation, classes: Sequence[str]) -> bytes:
    rows = ((score.name, score.images, _percent(score.top1)) for score in found.of_classes(classes))
    return _csv(["class", "images", "top-1 %"], rows)


def _predictions(found: Evaluation, tested: ImagesOfTest) -> bytes:
    """A row for each image, in the order of the files' names."""
    names, classes = [tested.images.name(i) for i in range(found.images)], tested.classes
    columns = (found.labels.tolist(), found.predicted.tolist(), found.confidence.tolist())
    rows = sorted(zip(names, *columns, strict=True), key=lambda row: _by_number(row[0]))
    return _csv(
        ["file", "class", "prediction", "confidence"],
        ((name, classes[label], classes[predicted], f"{share:.6f}") for name, label, predicted, share in rows),
    )


def _by_number(name: str) -> list[tuple[int, str]]:
    """What names are sorted by: `9.png` comes before `10.png`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _mistakes(found: Evaluation, tested: ImagesOfTest) -> Figure:
    shown: list[mistakes.Mistake] = []
    names = confusion.labels(tested.classes)
    for i in found.mistakes(mistakes.SHOWN):
        true, predicted = (names[int(each[i])] for each in (found.labels, found.predicted))
        shown.append((tested.view(tested.images.read(i)), true, predicted, float(found.confidence[i])))
    return mistakes.as_figure(shown, int((~found.right).sum()), found.images)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def _csv(head: list[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
