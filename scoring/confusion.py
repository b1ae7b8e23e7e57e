"""Which classes are taken for which: a run's last test as a table (CSV) and a picture."""

import csv
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from torch import Tensor

MOST_NUMBERED = 20  # classes up to which each cell says its number
MOST_NAMED = 120  # classes up to which the axes name them
MOST_SHOWN = 1000  # classes up to which there is a picture, and a column for each in the table
# Fonts, where they are installed, that write what Matplotlib's own does not: Chinese, Japanese, Korean, symbols.
FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei"),
    *("PingFang SC", "Hiragino Sans GB", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Sans", "Symbola"),
)


def as_csv(counts: Tensor, classes: Sequence[str]) -> bytes:
    """counts (true classes, predicted classes), sparse -> a row for each true class, a column for each predicted one.

    Of more than `MOST_SHOWN` classes, a row for each pair that occurs: true class, predicted class, images.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    if len(classes) > MOST_SHOWN:
        writer.writerow(["true class", "predicted class", "images"])
        triples = zip(*counts.indices().tolist(), counts.values().tolist(), strict=True)
        writer.writerows((classes[true], classes[predicted], count) for true, predicted, count in triples)
    else:
        writer.writerow(["true class", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, counts.to_dense().tolist(), strict=True))
    return text.getvalue().encode()


def as_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """counts (true classes, predicted classes), sparse -> a figure; the diagonal has what is right.

    Raises:
        ValueError: there are too many classes for a picture.
    """
    from sklearn.metrics import ConfusionMatrixDisplay  # here, since it takes a second to import

    if len(classes) > MOST_SHOWN:
        raise ValueError(f"{len(classes):,} classes are too many for a picture; at most {MOST_SHOWN:,}")
    table = counts.to_dense()
    side = 3.0 + min(9.0, 0.35 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(table.numpy(), display_labels=labels(classes))
    display.plot(
        ax=axes,
        include_values=len(classes) <= MOST_NUMBERED,
        cmap="Blues",
        values_format="d",
        xticks_rotation="vertical",
    )
    if len(classes) > MOST_NAMED:
        axes.set(xticks=[], yticks=[])
    else:
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set(family=["DejaVu Sans", *fonts()], size=5 if len(classes) > MOST_NUMBERED else None)
    right = 100 * float(table.diagonal().sum()) / max(1, int(table.sum()))
    axes.set_title(f"top-1 {right:.2f} % of {int(table.sum()):,} test images", fontsize=9)
    return figure


def labels(classes: Iterable[str]) -> list[str]:
    """The classes as Matplotlib writes them; a name that no font here has is its number among them all."""
    return [drawable(name, f"class {number}") for number, name in enumerate(classes)]


def drawable(name: str, otherwise: str) -> str:
    """A name as Matplotlib writes it: $ is no formula; `otherwise` where no font here has all of its letters."""
    known = characters("DejaVu Sans", *fonts())
    return (name if known.issuperset(name) else otherwise).replace("$", r"\$")


@lru_cache
def fonts() -> tuple[str, ...]:
    """Those of `FURTHER_FONTS` that are installed."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FURTHER_FONTS if name in installed)


@lru_cache
def characters(*names: str) -> frozenset[str]:
    """All that these fonts write."""
    return frozenset(chr(code) for name in names for code in get_font(fontManager.findfont(name)).get_charmap())
