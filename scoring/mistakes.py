"""The mistakes of a test of which the network was surest, as a picture: a wrong label is often among them."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from scoring.confusion import fonts

SHOWN = 25  # mistakes
COLUMNS = 5
SPACING = 1.25  # from one row to the next, in columns
MOST_LETTERS = 18  # of a class's name above a picture

# An image as the network saw it; its class and what it was taken for, as `confusion.labels` has them; how surely
Mistake = tuple[Image.Image, str, str, float]


def as_figure(mistakes: Sequence[Mistake], wrong: int, images: int) -> Figure:
    """A picture for each mistake, of `wrong` in so many images: what it was taken for, how surely, what it is."""
    rows = max(1, -(-len(mistakes) // COLUMNS))
    figure = Figure(figsize=(2.0 * COLUMNS, 0.5 + 2.0 * SPACING * rows))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0 - 0.5 / figure.get_figheight()))  # one for all: each takes its time
    family = ["DejaVu Sans", *fonts()]
    for number, (image, true, predicted, confidence) in enumerate(mistakes):
        left, top = number % COLUMNS, number // COLUMNS * SPACING
        axes.imshow(image, interpolation="nearest", extent=(left, left + 0.9, top + 0.9, top))
        title = f"{_short(predicted)} {100 * confidence:.1f} %\nis {_short(true)}"
        axes.text(left, top - 0.03, title, fontsize=8, family=family, verticalalignment="bottom")
    axes.set(xlim=(0, COLUMNS), ylim=(rows * SPACING - 0.3, -0.3), aspect="auto")
    axes.set_axis_off()
    figure.suptitle(f"{wrong:,} of {images:,} test images are taken for another class; the surest first", fontsize=9)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
