"""The mistakes of a test of which the network was surest, as a picture: a wrong label is often among them."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from scoring.confusion import fonts, labels

SHOWN = 25  # mistakes
COLUMNS = 5
MOST_LETTERS = 18  # of a class's name above a picture

Mistake = tuple[Image.Image, str, str, float]  # as the network saw it; its class, what it was taken for, how surely


def as_figure(mistakes: Sequence[Mistake], wrong: int, images: int) -> Figure:
    """A picture for each mistake, of `wrong` in so many images: what it was taken for, how surely, what it is."""
    rows = max(1, -(-len(mistakes) // COLUMNS))
    figure = Figure(figsize=(2.0 * COLUMNS, 0.6 + 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in all_axes:
        axes.set_axis_off()
    family = ["DejaVu Sans", *fonts()]
    for axes, (image, true, predicted, confidence) in zip(all_axes, mistakes, strict=False):
        axes.imshow(image, interpolation="nearest")
        taken, own = (_short(name) for name in labels([predicted, true]))
        axes.set_title(f"{taken} {100 * confidence:.1f} %\nis {own}", fontsize=8, family=family)
    figure.suptitle(f"{wrong:,} of {images:,} test images are taken for another class; the surest first", fontsize=9)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
