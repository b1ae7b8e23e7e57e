"""The figures of an experiment, out of its answer: which numbers `figures.py` is given."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from evidence import figures
from evidence.analysis import Answer, Finding
from evidence.contrasts import Estimate
from evidence.figures import COLOURS, Curve, Interval, Look, Row
from evidence.predictions import TOP1
from evidence.questions import EVALUATION, TRAINING_MODE, Comparison
from evidence.sources import STUDYS_RUNS, R, S, study_curve

THE_STUDY, S_LESS_R = "the study's {}, one run", "λ − R"
ARMS = dict(zip("RSL", COLOURS, strict=False))  # each has its colour in all stages
NAN = float("nan")


def draw(answer: Answer, folder: Path, link: str) -> list[str]:
    """Every figure of an experiment as a line of Markdown; nothing of what has no run yet.

    Args:
        folder: where the files go; `link` is the same as RESULTS.md sees it.
    """
    if not any(network.counting for network in answer.networks.values()):
        return []
    lines = []
    for name in answer.experiment.figures:
        caption, drawer = DRAWERS[name]
        path = folder / answer.chapter.folder / f"{answer.name}-{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if digest := drawer(answer, f"{answer.name}: {answer.chapter.title}", path):
            where = f"{link}/{answer.chapter.folder}/{path.name}"
            lines.append(f"![{answer.name}: {name}]({where})\n\n*{caption}.* <!-- numbers {digest} -->\n")
    return lines


def _curves(answer: Answer, place: str, path: Path) -> str:
    """Top-1, differences and loss by epoch; the study's beside ours where they are of the same schedule."""
    last = max((len(record.rows) for n in answer.networks.values() for record in n.counting), default=0)
    if not last:
        return ""
    colours = dict(zip(answer.experiment.variations, COLOURS, strict=False))
    colours |= {label: colour for label, colour in ARMS.items() if label in colours}
    rows: list[Row] = [("top-1 (%)", _both(lambda part: _levels(answer, part, "top1")), {})]
    pairs = [comparison for comparison in answer.experiment.comparisons if comparison.less is None]
    looks: dict[str, Look] = {label: (colour, "-") for label, colour in colours.items()}
    looks |= {_in_training_mode(label): (colour, ":") for label, colour in colours.items()}
    looks |= {comparison.title: (colours[comparison.ours], "-") for comparison in pairs}
    differences = _both(lambda part: _differences(answer, pairs, part))
    if any(differences.values()):
        rows.append((figures.POINTS_APART, differences, {}))
    if answer.repeats:
        names = {network: THE_STUDY.format(network) for network in (R, S, S_LESS_R)}
        looks |= {names[run]: (colours[label], "--") for label, run in STUDYS_RUNS.items() if label in colours}
        looks[names[S_LESS_R]] = ("black", "--")
        studys = _both(lambda part: {names[n]: _plain(study_curve(n, part)[:last]) for n in (R, S)})
        of_study = _both(lambda part: {names[S_LESS_R]: _studys_difference(part, last)})
        rows = [(label, ours, one) for (label, ours, _), one in zip(rows, (studys, of_study), strict=False)]
    rows.append(("loss", _both(lambda part: _levels(answer, part, "loss")), {}))
    return figures.curves(rows, looks, place, path)


def _both(of_part: Callable[[str], dict[str, Curve]]) -> dict[str, dict[str, Curve]]:
    return {part: of_part(part) for part in ("test", "train")}


def _differences(answer: Answer, pairs: list[Comparison], part: str) -> dict[str, Curve]:
    found = {comparison.title: answer.differences(comparison, part) for comparison in pairs}
    return {title: _with_intervals(points) for title, points in found.items() if points}


def _studys_difference(part: str, last: int) -> Curve:
    pairs = zip(study_curve(S, part)[:last], study_curve(R, part)[:last], strict=True)
    return _plain([ours - theirs for ours, theirs in pairs])


def _levels(answer: Answer, part: str, what: str) -> dict[str, Curve]:
    """The networks' own curves, on the test images in each mode in which they are compared, else in evaluation mode."""
    found = {}
    for label, network in answer.networks.items():
        modes = {mode for one, mode in answer.columns if one == label and part == "test"} or {EVALUATION}
        names = {label: f"{part}_{what}", _in_training_mode(label): f"{part}_{what}_{TRAINING_MODE}"}
        for (name, key), mode in zip(names.items(), (EVALUATION, TRAINING_MODE), strict=True):
            values = list(itertools.takewhile(bool, (network.at(epoch, key) for epoch in itertools.count(1))))
            if mode in modes and values:
                found[name] = figures.curve([list(at.values()) for at in values])
    return found


def _in_training_mode(label: str) -> str:
    return f"{label}, training mode"


def _plain(values: Sequence[float]) -> Curve:
    nothing = [NAN] * len(values)
    return Curve(list(values), nothing, nothing, [1] * len(values))


def _with_intervals(points: list[Estimate]) -> Curve:
    bounds = [one.interval() for one in points]
    means, runs = [one.points for one in points], [len(one.each) for one in points]
    return Curve(means, [low for low, _ in bounds], [high for _, high in bounds], runs)


def _intervals(answer: Answer, place: str, path: Path) -> str:
    """What `tables.differences` has, drawn."""
    panels = {}
    for title, part, findings in (("top-1 test", "test", answer.test), ("top-1 training", "train", answer.training)):
        known = [one for one in findings if one.estimate and one.estimate.known]
        rows = {one.comparison.title: _interval(answer, one, part) for one in known}
        if rows:
            panels[title] = rows
    return figures.intervals(panels, place, path) if panels else ""


def _interval(answer: Answer, one: Finding, part: str) -> Interval:
    found = one.estimate
    assert found is not None
    told_apart, studys = one.verdict in ("higher", "lower"), answer.studys(one.comparison, part)
    return Interval(found.points, *found.interval(), *one.with_images, list(found.each.values()), told_apart, studys)


def _rates(answer: Answer, place: str, path: Path) -> str:
    points: dict[str, dict[float, list[float]]] = {}
    for label, network in answer.networks.items():
        family, _, rate = label.rpartition(", ")
        if values := list(network.endpoints("validation_top1").values()):
            points.setdefault(family, {})[float(rate)] = values
    return figures.learning_rates(points, place, path) if points else ""


def _trade_offs(answer: Answer, place: str, path: Path) -> str:
    points = {
        label: {
            "top1": list(network.endpoints(TOP1[EVALUATION]).values()),
            "images_per_second": statistics.mean(network.medians("images_per_second")),
            "parameters": network.parameters,
        }
        for label, network in answer.networks.items()
        if network.done and network.medians("images_per_second")
    }
    return figures.trade_offs(points, place, path) if points else ""


def _minutes(answer: Answer, place: str, path: Path) -> str:
    """Of the networks of which some run has the time of every epoch."""
    found = {}
    for label, levels in _levels(answer, "test", "top1").items():
        network = answer.networks[label]
        times = [network.at(epoch, "train_seconds").values() for epoch in range(1, len(levels.means) + 1)]
        if all(times):
            seconds = itertools.accumulate(statistics.mean(each) for each in times)
            found[label] = ([total / 60 for total in seconds], levels)
    return figures.against_minutes(found, place, path) if found else ""


# A caption, and a function that draws and gives the digest of its numbers, or nothing where there is nothing to draw
DRAWERS: dict[str, tuple[str, Callable[[Answer, str, Path], str]]] = {
    "curves": (
        "Epoch by epoch: top-1 and loss, mean over the runs with a band of one standard deviation; differences within "
        "a seed, with a band of their 95 % interval, which may reach beyond the panel. Tests are in evaluation mode, "
        "or in training mode where a name says so; the study tested in training mode",
        _curves,
    ),
    "intervals": (
        "Differences within a seed: each seed (small dots), their mean, its 95 % interval (thick) and that which "
        "covers other test images too (thin); grey where it is not told apart from 0; the study's own as a diamond",
        _intervals,
    ),
    "minutes": (
        "Top-1 on the test images against the minutes of training (tests not counted), both in the mean over the runs, "
        "top-1 with a band of one standard deviation",
        _minutes,
    ),
    "rates": (
        "Top-1 on the validation images against the initial learning rate, with one standard deviation",
        _rates,
    ),
    "trade_offs": (
        "Top-1 on the test images against throughput and parameters, with one standard deviation",
        _trade_offs,
    ),
}
