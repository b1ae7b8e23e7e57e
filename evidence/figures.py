"""The figures of RESULTS.md, as SVG: the same numbers give the same bytes, with the same matplotlib.

Each function takes plain numbers, writes one file, and gives a digest of the numbers, which the file carries too: so a
figure that no longer shows what the logs hold is found without comparing drawings.
"""

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

POINTS_APART = "difference within a seed (points)"
SPIKE = 20.0  # times the median; what lies above is written at the top of its panel, since it would flatten the rest
GREY = "#888888"
# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP*X<>"
STYLE: dict[Any, Any] = {  # Matplotlib types the keys as literals
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


@dataclass(frozen=True)
class Curve:
    """A figure epoch by epoch; a single run has no band."""

    means: list[float]
    low: list[float]  # of the band, epoch by epoch; nan where there is none
    high: list[float]
    runs: list[int]  # how many it is taken over

    @property
    def counts(self) -> str:
        """`3 runs`, or `3 runs to epoch 12, 2 to 20`."""
        changes = [place for place in range(1, len(self.runs)) if self.runs[place] != self.runs[place - 1]]
        words = "run" if self.runs[0] == 1 else "runs"
        if not changes:
            return f"{self.runs[0]} {words}"
        ends = [*changes, len(self.runs)]
        first, *rest = [f"to epoch {end}" for end in ends]
        return ", ".join(
            [
                f"{self.runs[0]} {words} {first}",
                *(
                    f"{self.runs[end - 1]} {text.replace('epoch ', '')}"
                    for end, text in zip(ends[1:], rest, strict=True)
                ),
            ]
        )


def curve(values: list[list[float]]) -> Curve:
    """Mean and standard deviation of the values of all runs, epoch by epoch."""
    pairs = [centre_and_spread(runs) for runs in values]
    low, high = [mean - s for mean, s in pairs], [mean + s for mean, s in pairs]
    return Curve([mean for mean, _ in pairs], low, high, [len(runs) for runs in values])


Look = tuple[str, str]  # colour and style of a line
# A row of panels: what its axis says, and for each of test and training the curves by name, ours and the study's
Row = tuple[str, dict[str, dict[str, Curve]], dict[str, dict[str, Curve]]]


@matplotlib.rc_context(STYLE)
def curves(rows: list[Row], looks: dict[str, Look], place: str, path: Path) -> str:
    """Panels of test (left) and training (right), ours with bands, the study's thin.

    Args:
        rows: (label of the axis, ours, the study's); both {`test` or `train`: {name: curve}}.
        looks: of every name.
    """
    figure, panels = plt.subplots(len(rows), 2, figsize=(10, 3.2 * len(rows)), squeeze=False, sharex=True)
    for (label, ours, studys), pair in zip(rows, panels, strict=True):
        for part, axes in zip(("test", "train"), pair, strict=True):
            for name, one in ours.get(part, {}).items():
                _band(axes, one, looks[name], f"{name} ({one.counts})")
            for name, one in studys.get(part, {}).items():
                colour, line = looks[name]
                axes.plot(range(1, len(one.means) + 1), one.means, line, color=colour, linewidth=1, label=name)
            means = [mean for one in (ours.get(part, {}) | studys.get(part, {})).values() for mean in one.means]
            if label == POINTS_APART:
                axes.axhline(0.0, color="black", linewidth=0.8)
                low, high = min(means, default=0.0), max(means, default=0.0)
                room = high - low or 1.0  # for bands: the widest would hide the curves
                axes.set_ylim(low - room, high + room)
            elif means and max(means) > SPIKE * statistics.median(means):
                _cut_spikes(axes, ours[part], SPIKE * statistics.median(means))
            axes.set_title("test images" if part == "test" else "training images", fontsize=9)
        pair[0].set_ylabel(label)
        pair[0].legend(fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return save(figure, place, path, [[label, _plain(ours), _plain(studys)] for label, ours, studys in rows])


def _cut_spikes(axes: Axes, curves: dict[str, Curve], highest: float) -> None:
    """End the panel above the values up to `highest`, and write those beyond it there."""
    top = 1.05 * max(mean for one in curves.values() for mean in one.means if mean <= highest)
    axes.set_ylim(min(mean for one in curves.values() for mean in one.means) / 1.05, top)
    for one in curves.values():
        for epoch, mean in enumerate(one.means, start=1):
            if mean > highest:
                axes.annotate(f"{mean:.1e}", (epoch + 1.2, top), fontsize=7, verticalalignment="top")


def _plain(parts: dict[str, dict[str, Curve]]) -> dict[str, dict[str, list[list[float]]]]:
    return {
        part: {name: [one.means, one.low, one.high, list(map(float, one.runs))] for name, one in found.items()}
        for part, found in parts.items()
    }


def _band(axes: Axes, one: Curve, look: Look, label: str, at: Sequence[float] = ()) -> None:
    """A curve over the epochs, or over what stands in their place in `at`."""
    places, (colour, line) = at or range(1, len(one.means) + 1), look
    marker = "o" if len(one.means) < 15 else None
    axes.plot(places, one.means, line, color=colour, label=label, marker=marker, markersize=3)
    axes.fill_between(places, one.low, one.high, color=colour, alpha=0.15, linewidth=0)


@matplotlib.rc_context(STYLE)
def against_minutes(networks: dict[str, tuple[list[float], Curve]], place: str, path: Path) -> str:
    """Top-1 on the test images after each epoch.

    Args:
        networks: {label: (minutes of training up to the end of each epoch, top-1 then)}.
    """
    figure, axes = plt.subplots(figsize=(7, 4))
    for (label, (minutes, one)), colour in zip(networks.items(), COLOURS, strict=False):
        _band(axes, one, (colour, "-"), f"{label}: {one.means[-1]:.1f} % ({one.counts})", minutes)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("top-1 on the test images (%)")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")
    plain = {label: [minutes, one.means, one.low, one.high] for label, (minutes, one) in networks.items()}
    return save(figure, place, path, plain)


@dataclass(frozen=True)
class Interval:
    """A difference as it is drawn."""

    points: float
    low: float  # 95 % interval; nan where there is none
    high: float
    wide_low: float  # that which covers other test images too
    wide_high: float
    each: list[float]  # seed by seed
    told_apart: bool  # by its corrected p-value
    studys: float | None = None


@matplotlib.rc_context(STYLE)
def intervals(panels: dict[str, dict[str, Interval]], place: str, path: Path) -> str:
    """{endpoint: {comparison: its interval}}: blue above 0, vermilion below, grey where not told apart."""
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    figure, found = plt.subplots(1, len(panels), figsize=(10, 0.45 * len(names) + 1.7), squeeze=False, sharey="row")
    for axes, (title, rows) in zip(found[0], panels.items(), strict=True):
        for name, one in rows.items():
            row = names.index(name)
            colour = GREY if not one.told_apart else BLUE if one.points > 0.0 else VERMILION
            axes.plot([one.wide_low, one.wide_high], [row, row], "|-", color=colour, linewidth=1, markersize=9)
            axes.plot([one.low, one.high], [row, row], color=colour, linewidth=4, alpha=0.6, solid_capstyle="butt")
            axes.plot(one.each, [row - 0.22] * len(one.each), ".", color=colour, markersize=4, alpha=0.8)
            axes.plot([one.points], [row], "o", color=colour, markersize=5)
            if one.studys is not None:
                axes.plot([one.studys], [row + 0.22], "D", color="black", markersize=4, fillstyle="none")
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="difference in points")
        axes.grid(axis="y", visible=False)
    found[0][0].set_yticks(range(len(names)), names)
    found[0][0].set_ylim(len(names) - 0.5, -0.5)
    numbers = {title: {name: list(vars(one).values()) for name, one in rows.items()} for title, rows in panels.items()}
    return save(figure, place, path, numbers)


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
