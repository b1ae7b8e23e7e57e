"""Which classes are taken for which: a run's last test as a table (CSV) and a picture."""

import csv
import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

MOST_NUMBERED = 20  # classes up to which each cell says its number
MOST_NAMED = 120  # classes up to which the axes name them


def as_csv(counts: Tensor, classes: Sequence[str]) -> bytes:
    """counts (true classes, predicted classes) -> a row for each true class, a column for each predicted one."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true class", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
    return text.getvalue().encode()


def as_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """counts (true classes, predicted classes) -> a figure; the diagonal has what is right."""
    from sklearn.metrics import ConfusionMatrixDisplay  # here, since it takes a second to import

    side = 3.0 + min(9.0, 0.35 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(counts.numpy(), display_labels=classes)
    display.plot(
        ax=axes,
        include_values=len(classes) <= MOST_NUMBERED,
        cmap="Blues",
        values_format="d",
        xticks_rotation="vertical",
    )
    if len(classes) > MOST_NAMED:
        axes.set(xticks=[], yticks=[])
    elif len(classes) > MOST_NUMBERED:
        axes.tick_params(labelsize=5)
    right = 100 * float(counts.diagonal().sum()) / max(1, int(counts.sum()))
    axes.set_title(f"top-1 {right:.2f} % of {int(counts.sum()):,} test images", fontsize=9)
    return figure
