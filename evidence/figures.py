"""The figures of RESULTS.md, as SVG: the same numbers give the same bytes, with the same matplotlib.

Each function takes plain numbers, writes one file, and gives a digest of the numbers, which the file carries too: so a
figure that no longer shows what the logs hold is found without comparing drawings.
"""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP*X<>"
STYLE = {
    "svg.fonttype": "none",  # letters as letters: no bytes that depend on how a font is drawn
    "svg.hashsalt": "lambda",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.facecolor": "white",  # and opaque, so that it is read on a dark page as on a white one
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def digest(numbers: Any) -> str:
    """Of all the numbers that a figure shows, to nine digits."""
    text = json.dumps(numbers, ensure_ascii=False, default=str)
    rounded = json.dumps(json.loads(text, parse_float=lambda number: f"{float(number):.9g}"), ensure_ascii=False)
    return hashlib.sha256(rounded.encode()).hexdigest()[:16]


def save(figure: Figure, place: str, path: Path, numbers: Any) -> str:
    """Write the figure, headed by what it was measured on; the digest of its numbers."""
    figure.suptitle(place, fontsize=8, color="#555555")
    name = digest(numbers)
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Description": f"numbers {name}"})
    plt.close(figure)
    return name


def centre_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 of one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@matplotlib.rc_context(STYLE)
def learning_curves(curves: dict[str, dict[str, list[list[float]]]], place: str, path: Path) -> str:
    """{network: {figure: its values over the seeds, for each epoch}}: top-1 and loss; test solid, training dashed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for axes, what, label in ((left, "top1", "top-1 (%)"), (right, "loss", "loss")):
        for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
            for part, line in (("test", "-"), ("train", "--")):
                seeds = len(values[f"{part}_{what}"][0])
                text = f"{name} ({seeds} seed{'s' if seeds > 1 else ''})" if part == "test" else None
                _band(axes, values[f"{part}_{what}"], colour, line, text)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, names = left.get_legend_handles_labels()
    for text, line in (("test", "-"), ("training", "--")):
        handles.append(plt.Line2D([], [], color="#555555", linestyle=line))
        names.append(text)
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return save(figure, place, path, curves)


def _band(axes: Axes, values: list[list[float]], colour: str, line: str, label: str | None) -> None:
    epochs = range(1, len(values) + 1)
    pairs = [centre_and_spread(seeds) for seeds in values]
    marker = "o" if len(values) < 15 else None
    axes.plot(epochs, [mean for mean, _ in pairs], line, color=colour, label=label, marker=marker, markersize=3)
    axes.fill_between(
        epochs, [mean - s for mean, s in pairs], [mean + s for mean, s in pairs], color=colour, alpha=0.15, linewidth=0
    )


@matplotlib.rc_context(STYLE)
def waterfall(rungs: dict[str, list[float]], place: str, path: Path) -> str:
    """{rung: its values over the seeds}: the first as it is, then what each repair adds, then where it ends."""
    names, pairs = list(rungs), [centre_and_spread(values) for values in rungs.values()]
    means = [mean for mean, _ in pairs]
    spread = max(s for _, s in pairs)
    floor = min(means) - max(1.0, 3 * spread, 0.3 * (max(means) - min(means)))
    figure, axes = plt.subplots(figsize=(10, 0.62 * (len(names) + 1) + 1.4))
    for row, (mean, s) in enumerate(pairs):
        before = means[row - 1] if row else floor
        colour = "#777777" if row == 0 else BLUE if mean >= before else VERMILION
        axes.barh(row, mean - before, left=before, color=colour, alpha=0.85, height=0.6)
        axes.errorbar(mean, row, xerr=s, color="black", capsize=3, linewidth=1)
        step = f"{mean:.2f}" if row == 0 else f"{mean - before:+.2f}".replace("-", "−")
        axes.annotate(
            step, (max(mean + s, before), row), xytext=(6, 0), textcoords="offset points", va="center", color="black"
        )
        if row + 1 < len(pairs):
            axes.plot([mean, mean], [row, row + 1], color="#555555", linewidth=0.8)
    axes.barh(len(names), means[-1] - floor, left=floor, color="#777777", alpha=0.85, height=0.6)
    axes.annotate(f"{means[-1]:.2f}", (means[-1], len(names)), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(
        range(len(names) + 1), [names[0], *(f"+ {name}" for name in names[1:]), "the layer of this project"]
    )
    axes.invert_yaxis()
    axes.set_xlim(floor, max(mean + s for mean, s in pairs) + 0.12 * (max(means) - floor))
    axes.grid(axis="y", visible=False)
    seeds = sorted({len(values) for values in rungs.values()})
    count = "–".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1])))
    axes.set_xlabel(f"top-1 on the test images (%), mean and standard deviation over {count} seeds; the axis is cut")
    return save(figure, place, path, rungs)


@matplotlib.rc_context(STYLE)
def learning_rates(points: dict[str, dict[float, list[float]]], place: str, path: Path) -> str:
    """{network: {initial learning rate: top-1 on the validation images over the seeds}}."""
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for (name, rates), colour, marker in zip(points.items(), COLOURS, MARKERS, strict=False):
        pairs = [centre_and_spread(values) for values in rates.values()]
        axes.errorbar(
            list(rates),
            [mean for mean, _ in pairs],
            [s for _, s in pairs],
            color=colour,
            marker=marker,
            capsize=3,
            label=name,
        )
    axes.set(xscale="log", xlabel="initial learning rate", ylabel="top-1 on the validation images (%)")
    axes.legend()
    return save(figure, place, path, {name: list(rates.items()) for name, rates in points.items()})


@matplotlib.rc_context(STYLE)
def trade_offs(points: dict[str, dict[str, Any]], place: str, path: Path) -> str:
    """{network: top1 over the seeds, images_per_second, parameters in millions}: one panel for each price."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    prices = {"images_per_second": "images/s in training", "parameters": "parameters (M)"}
    for axes, (price, text) in zip(panels, prices.items(), strict=True):
        for index, (name, point) in enumerate(points.items()):
            mean, s = centre_and_spread(point["top1"])
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.errorbar(point[price], mean, s, color=colour, marker=marker, capsize=3, linestyle="none", label=name)
        axes.set_xlabel(text)
    panels[0].set_ylabel("top-1 on the test images (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save(figure, place, path, points)


@matplotlib.rc_context(STYLE)
def dots(points: dict[str, list[float]], place: str, path: Path) -> str:
    """{network: top-1 over the seeds}: a dot for each seed, a bar at the mean; a line at the first."""
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(points) + 1.6))
    for row, values in enumerate(points.values()):
        colour = VERMILION if row == 0 else BLUE
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=4, alpha=0.7)
        axes.plot([statistics.mean(values)], [row], "|", color="black", markersize=12)
    axes.axvline(statistics.mean(next(iter(points.values()))), color=VERMILION, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(points)), list(points))
    axes.invert_yaxis()
    axes.set_xlabel("top-1 on the test images (%)")
    return save(figure, place, path, points)
