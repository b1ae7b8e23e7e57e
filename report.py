"""Writes RESULTS.md and its figures out of the logs of all the experiments' runs, and nothing else.

    python report.py        # reads results/logs/ and docs/conclusions.md, writes RESULTS.md and results/figures/

The same logs give the same bytes (figures: with the same matplotlib). Only `docs/conclusions.md` is written by hand.
"""

import argparse
import json
import math
import shutil
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from command_line.errors import InputError, Parser, one_line_errors
from command_line.paths import PROJECT
from evidence import figures
from evidence.runs import FOLDER, Conditions, Record, read_record
from experiments import ESTIMATES, EXPERIMENTS, RATES, Experiment, command

RESULTS, FIGURES, CONCLUSIONS = "RESULTS.md", "results/figures", "docs/conclusions.md"
CLAIM = 3  # seeds that a claim takes
CONFIDENCE, POWER = 0.95, 0.8
# What every other network of an experiment is compared with; the ladder compares each rung with the one before it.
REFERENCES = {
    "layers": "convolution",
    "ablation": "as it is",
    "hybrids": "CCCC",
    "best": "ResNet-50",
}
INTRODUCTION = """# Results

Written by `python report.py` out of the logs under `results/logs/`; only the conclusions
(`docs/conclusions.md`) are written by hand. `python experiments.py` makes the runs.
"""
METHOD = """## How it was measured

- Every run that was started is here: those that diverged, did not fit into memory or are not finished are counted in
  the column of seeds. Nothing was chosen on test images: top-1 is that of the last epoch, and where a setting was
  chosen, a tenth of the training images was held back for it.
- *a ± s (n)* is the mean over n seeds and their sample standard deviation. One seed has no standard deviation.
- Differences are in percentage points of top-1 on the test images, with their 95 % confidence interval by Welch's
  t-test (`scipy.stats.ttest_ind`, unequal variances, not paired: a seed fixes the order and augmentation of the images,
  but networks of different shape draw different initial weights from it). The interval covers what another seed
  changes, not what other test images would. The p-values are not corrected for the number of comparisons.
- Networks are compared within the same data, epochs, images, device and precision only, and these stand in each line.
  Figures on another copy of a data set are never set beside other people's.
- Images per second are those of training, without the test; where several runs shared the machine, the line says so,
  and the rates are for comparison with each other alone. Peak memory is what PyTorch held on a GPU, and the most that
  the process held on a CPU, data set included.
"""
# What the sources report: CIFAR-10 for the study, ImageNet for the paper (ResNet-50, 224×224).
STUDY = {"ResNet-50": "84.6", "λ-ResNet-50": "81.4"}
STUDYS_RATES = {
    "ResNet-50": dict(zip(RATES, (84.5, 84.6, 82.2, 69.5, 60.5), strict=True)),
    "λ-ResNet-50": dict(zip(RATES, (80.2, 81.4, 80.6, 71.0, 64.7), strict=True)),
}
PAPER = {
    "layers": {
        "convolution": "76.9",
        "convolution + SE": "77.6",
        "self-attention, global": "77.7",
        "self-attention, 7×7": "77.4",
        "linear attention": "77.0",
        "λ, global": "78.4",
        "λ, 7×7": "78.1",
        "λ, shared embeddings": "78.0",
        "λ, u = 4": "78.9",
    },
    "ablation": {"as it is": "78.4", "content only": "68.8", "position only": "78.1"},
    "hybrids": {
        "CCCC": "76.9",
        "LCCC": "77.3",
        "LLCC": "77.2",
        "LLLC": "77.8",
        "LLLL": "78.4",
        "CLLL": "78.3",
        "CCLL": "78.3",
        "CCCL": "77.3",
    },
}
SOURCES = f"""## Figures of the study and of the paper

For the eye, not for comparison with other data than theirs. The study, CIFAR-10, 90 epochs, one seed:

| | ResNet-50 | λ-ResNet-50 |
| --- | --- | --- |
| top-1 test / training (%) | 84.6 / 95.6 | 81.4 / 94.2 |
| loss test / training | 0.54 / 0.61 | 0.64 / 0.64 |
| parameters (M) | 23.5 | 12.8 |
| whole run | 1 h 17 min 29 s | 1 h 3 min 6 s |
| epoch of training (s), images/s | 50.92, 981.93 | 38.96, 1283.26 |
{
    chr(10).join(
        f"| top-1 test at initial learning rate {rate:g} (%) | "
        + " | ".join(str(rates[rate]) for rates in STUDYS_RATES.values())
        + " |"
        for rate in RATES
    )
}

The paper, top-1 on ImageNet (%): {
    "; ".join(", ".join(f"{name} {value}" for name, value in PAPER[part].items()) for part in PAPER)
}.
"""


# ---------------------------------------------------------------------------------------------- reading the logs


@dataclass(frozen=True)
class Chapter:
    """All the runs under the same conditions."""

    conditions: Conditions
    records: dict[str, list[Record]]  # by variation, in the order of their seeds

    @property
    def title(self) -> str:
        scale = self.conditions
        words = [scale.data, scale.device, scale.precision]
        if scale.scale != "full":
            words.append(f"{scale.epochs_scale:g} of the epochs, {scale.images_scale:g} of the training images")
        return ", ".join(words)

    @property
    def software(self) -> str:
        """The versions that the runs were made with."""
        configs = [record.config for records in self.records.values() for record in records]
        versions = sorted({f"Python {c['versions']['python']}, PyTorch {c['versions']['torch']}" for c in configs})
        return f"{len(configs)} runs, with {'; '.join(versions)}."

    @property
    def comparable(self) -> bool:
        """Whether the study's figures may stand beside these."""
        return self.conditions.data == "CIFAR-10" and self.conditions.scale == "full"


def read_chapters(root: Path) -> list[Chapter]:
    """The runs of all conditions, those on CIFAR-10 itself and at full scale first."""
    chapters = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        records: dict[str, list[Record]] = {}
        for path in folder.glob("*/seed-*"):
            if record := read_record(path):
                records.setdefault(record.variation, []).append(record)
        if records:
            for group in records.values():
                group.sort(key=lambda record: record.seed)
            chapters.append(Chapter(_conditions(next(iter(records.values()))[0], root), records))
    return sorted(chapters, key=lambda chapter: (not chapter.comparable, chapter.conditions.name))


def _conditions(record: Record, root: Path) -> Conditions:
    settings, experiment = record.config["settings"], record.config["experiment"]
    return Conditions(
        dataset=settings["dataset"],
        data_dir=settings["data_dir"],
        data=experiment["data"],
        device=settings["device"],
        precision=settings["precision"],
        epochs_scale=experiment["epochs_scale"],
        images_scale=experiment["images_scale"],
        root=root,
    )


class Network:
    """The runs of one variation, and what they came to."""

    def __init__(self, label: str, records: list[Record]) -> None:
        self.label, self.records = label, records
        self.done = [record for record in records if record.state == "done"]

    def last(self, key: str) -> list[float]:
        """A figure of the last epoch of every run that is done."""
        return [record.rows[-1][key] for record in self.done]

    def each_epoch(self, key: str) -> list[float]:
        """Its mean over the epochs, of every run that is done."""
        return [statistics.mean(row[key] for row in record.rows) for record in self.done]

    def curve(self, key: str) -> list[list[float]]:
        """Its values over the seeds, epoch by epoch."""
        return [
            list(values) for values in zip(*([row[key] for row in record.rows] for record in self.done), strict=True)
        ]

    @property
    def seeds(self) -> str:
        """`3`, or `2 of 3: 1 diverged`."""
        others = [record.state for record in self.records if record.state != "done"]
        if not others:
            return str(len(self.done))
        counts = ", ".join(f"{others.count(state)} {state}" for state in sorted(set(others)))
        return f"{len(self.done)} of {len(self.records)}: {counts}"

    @property
    def parameters(self) -> float:
        """In millions."""
        return self.records[0].config["parameters"] / 1e6

    @property
    def measured_on(self) -> str:
        """Data, scale, device and precision, for the line of its figures."""
        config = self.records[0].config
        settings, experiment = config["settings"], config["experiment"]
        epochs, images = settings["epochs"], settings["training_images"]
        devices = sorted({record.config["device"] for record in self.records})
        jobs = max(record.config["experiment"]["jobs"] for record in self.records)
        return ", ".join(
            [
                experiment["data"],
                f"{epochs} epoch{'s' if epochs > 1 else ''}",
                f"{images:,} images" if images else "all images",
                *devices,
                config["precision"],
                *([f"{jobs} runs at once"] if jobs > 1 else []),
            ]
        )


def networks(experiment: Experiment, chapter: Chapter) -> dict[str, Network]:
    """By label, those of an experiment that were begun."""
    return {
        label: Network(label, chapter.records[variation.name])
        for label, variation in experiment.variations.items()
        if variation.name in chapter.records
    }


def begun(name: str, chapter: Chapter) -> bool:
    """Whether a network of the experiment's own was begun, and not only some that an earlier one has, too."""
    order = list(EXPERIMENTS)
    earlier = {run for other in order[: order.index(name)] for run in EXPERIMENTS[other].variations.values()}
    return any(run.name in chapter.records for run in EXPERIMENTS[name].variations.values() if run not in earlier)


# -------------------------------------------------------------------------------------------------- statistics


class Difference(NamedTuple):
    """Mean of one sample less that of another; interval and p by Welch's t-test, None where there is none."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


def difference(ours: list[float], theirs: list[float]) -> Difference:
    """Welch's t-test; two values in each sample at the least, and not all of them alike."""
    mean = statistics.mean(ours) - statistics.mean(theirs)
    if min(len(ours), len(theirs)) < 2 or (len(set(ours)) == 1 and len(set(theirs)) == 1):
        return Difference(mean, None, None, None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)  # where one has no spread
        result = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(result.pvalue))


def seeds_for(points: float, deviation: float) -> int:
    """Seeds of each of two networks that tell a difference of so many points apart, by the normal approximation."""
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    return max(CLAIM, math.ceil(2 * (reach * deviation / points) ** 2))


def spread(found: list[Network]) -> str:
    """The networks' common standard deviation over seeds, and how many seeds follow from it."""
    samples = [network.last("test_top1") for network in found if len(network.done) > 1]
    if not samples or not any(map(statistics.variance, samples)):
        return ""
    freedom = sum(len(sample) - 1 for sample in samples)
    pooled = math.sqrt(sum((len(sample) - 1) * statistics.variance(sample) for sample in samples) / freedom)
    return (
        f"Over seeds, top-1 has a standard deviation of {pooled:.2f} points ({freedom} degrees of freedom, all\n"
        f"networks here together). At a power of {POWER:.0%}, to tell 1 point apart takes {seeds_for(1.0, pooled)}\n"
        f"seeds of each network, and half a point {seeds_for(0.5, pooled)}.\n"
    )


def mean_and_deviation(values: list[float], digits: int = 2) -> str:
    """`84.61 ± 0.20 (3)`, without a deviation where there is one value."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def signed(value: float) -> str:
    """Two decimals with a sign, and no signed nought."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def verdict(result: Difference, seeds: int) -> str:
    """What a difference allows to say."""
    if seeds < CLAIM or result.low is None or result.high is None:
        return f"no claim: fewer than {CLAIM} seeds" if seeds < CLAIM else "no interval: no spread"
    if result.low <= 0.0 <= result.high:
        return "not told apart"
    return "higher" if result.low > 0.0 else "lower"


# ------------------------------------------------------------------------------------------------------ tables


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def results_table(found: dict[str, Network], reference: tuple[str, dict[str, str]] | None) -> str:
    """One line for each network, with the source's value beside ours where that may be."""
    head = ["network", "parameters (M)", "top-1 test (%)", "top-1 training (%)", "loss test", "loss training"]
    head += ["images/s", "epoch of training (s)", "whole run (min)", "peak memory (GiB)", "seeds"]
    head += [reference[0]] if reference else []
    rows = []
    for label, network in found.items():
        row = [label, f"{network.parameters:.2f}"]
        row += [mean_and_deviation(network.last(key)) for key in ("test_top1", "train_top1")]
        row += [mean_and_deviation(network.last(key), 3) for key in ("test_loss", "train_loss")]
        row += [mean_and_deviation(network.each_epoch("images_per_second"), 0)]
        row += [mean_and_deviation(network.each_epoch("train_seconds"), 1)]
        row += [mean_and_deviation([_minutes(record) for record in network.done], 1)]
        row += [f"{max(network.last('peak_memory_gib')):.1f}" if network.done else "–", network.seeds]
        row += [reference[1].get(label, "–")] if reference else []
        rows.append([*row, network.measured_on])
    return table([*head, "measured on"], rows)


def _minutes(record: Record) -> float:
    return sum(row["train_seconds"] + row["test_seconds"] for row in record.rows) / 60


def differences_table(pairs: list[tuple[Network, Network]]) -> str:
    """One line for each pair (network, what it is compared with) with a run done in both."""
    rows = []
    for ours, theirs in pairs:
        one, other = ours.last("test_top1"), theirs.last("test_top1")
        if not (one and other):
            continue
        result = difference(one, other)
        interval = "–" if result.low is None else f"{signed(result.low)} to {signed(result.high)}"  # type: ignore[arg-type]
        p = "–" if result.p is None else "< 0.001" if result.p < 0.001 else f"{result.p:.3f}"
        says = verdict(result, min(len(one), len(other)))
        seeds = f"{len(one)} and {len(other)}"
        place = (
            ours.measured_on if ours.measured_on == theirs.measured_on else f"{ours.measured_on}; {theirs.measured_on}"
        )
        rows.append([f"{ours.label} − {theirs.label}", signed(result.mean), interval, p, seeds, says, place])
    if not rows:
        return ""
    head = ["difference in top-1 test", "points", "95 % interval (Welch)", "p", "seeds", "so it is", "measured on"]
    return table(head, rows)


def pairs_of(name: str, found: dict[str, Network]) -> list[tuple[Network, Network]]:
    """What is compared with what in an experiment."""
    if name == "study":
        wanted = [("λ-ResNet-50" + stem, "ResNet-50" + stem) for stem in ("", ", cifar stem")]
    elif name == "ladder":
        rungs = list(EXPERIMENTS["ladder"].variations)
        wanted = [*zip(rungs[1:], rungs, strict=False), (rungs[-1], rungs[0])]
    elif name in REFERENCES:
        wanted = [(label, REFERENCES[name]) for label in found if label != REFERENCES[name]]
    else:
        wanted = []
    return [(found[ours], found[theirs]) for ours, theirs in wanted if ours in found and theirs in found]


def choices_table(found: dict[str, Network]) -> str:
    """Of an experiment that chooses a learning rate: validation beside test, and what is chosen."""
    best: dict[str, tuple[float, str]] = {}
    for label, network in found.items():
        if network.done:
            family = label.rpartition(", ")[0]
            best[family] = max(
                best.get(family, (-math.inf, "")), (statistics.mean(network.last("validation_top1")), label)
            )
    chosen = {label for _, label in best.values()}
    rows = [
        [
            label,
            mean_and_deviation(network.last("validation_top1")),
            "chosen" if label in chosen else "",
            mean_and_deviation(network.last("test_top1")),
            network.seeds,
            network.measured_on,
        ]
        for label, network in found.items()
    ]
    head = ["network, initial learning rate", "top-1 validation (%)", "", "top-1 test (%)", "seeds", "measured on"]
    return table(head, rows)


# ---------------------------------------------------------------------------------------------------- the text


def section(name: str, chapter: Chapter, folder: Path, link: str) -> str:
    """An experiment under its conditions: tables, differences, figure, what is missing."""
    experiment = EXPERIMENTS[name]
    if not begun(name, chapter):
        return ""
    found = networks(experiment, chapter)
    parts = [f"### {name}\n\n{experiment.question}\n"]
    if name in ("learning_rate", "best_tuning"):
        parts.append(choices_table(found))
    else:
        parts.append(results_table(found, _reference(name) if chapter.comparable else None))
        if text := differences_table(pairs_of(name, found)):
            parts += [text, spread(list(found.values()))]
    parts += draw(name, found, chapter, folder, link)
    if missing := [label for label in experiment.variations if label not in found]:
        line = command(chapter.conditions, "--only", name)
        time = _estimate(experiment, missing, chapter.conditions.folder / ESTIMATES)
        about = f" About {time}:" if time else ""
        parts.append(f"Not run yet: {'; '.join(missing)}.{about}\n\n```\n{line}\n```\n")
    return "\n".join(part for part in parts if part)


def _reference(name: str) -> tuple[str, dict[str, str]] | None:
    if name == "study":
        return "study, CIFAR-10 (%)", STUDY
    return ("paper, ImageNet (%)", PAPER[name]) if name in PAPER else None


def draw(name: str, found: dict[str, Network], chapter: Chapter, folder: Path, link: str) -> list[str]:
    """The figure of an experiment, as a line of Markdown; nothing where no run is done."""
    done = {label: network for label, network in found.items() if network.done}
    steps_missing = name == "ladder" and len(done) < len(EXPERIMENTS[name].variations)
    if not done or steps_missing or name == "best_tuning":
        return []
    path = folder / chapter.conditions.name / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    places = sorted({network.measured_on for network in done.values()})
    caption = FIGURE_CAPTIONS[name]
    digest = FIGURE_DRAWERS[name](done, "\n".join(places), path)
    where = f"{link}/{chapter.conditions.name}/{path.name}"
    return [f"![{caption}]({where})\n\n*{caption}. {'; '.join(places)}.* <!-- numbers {digest} -->\n"]


def _curves(done: dict[str, Network], place: str, path: Path) -> str:
    keys = ("test_top1", "train_top1", "test_loss", "train_loss")
    curves = {label: {key: network.curve(key) for key in keys} for label, network in done.items()}
    return figures.learning_curves(curves, place, path)


def _waterfall(done: dict[str, Network], place: str, path: Path) -> str:
    return figures.waterfall({label: rung.last("test_top1") for label, rung in done.items()}, place, path)


def _rates(done: dict[str, Network], place: str, path: Path) -> str:
    points: dict[str, dict[float, list[float]]] = {}
    for label, network in done.items():
        family, _, rate = label.rpartition(", ")
        points.setdefault(family, {})[float(rate)] = network.last("validation_top1")
    return figures.learning_rates(points, place, path)


def _trade_offs(done: dict[str, Network], place: str, path: Path) -> str:
    points = {
        label: {
            "top1": network.last("test_top1"),
            "images_per_second": statistics.mean(network.each_epoch("images_per_second")),
            "parameters": network.parameters,
        }
        for label, network in done.items()
    }
    return figures.trade_offs(points, place, path)


def _dots(done: dict[str, Network], place: str, path: Path) -> str:
    return figures.dots({label: network.last("test_top1") for label, network in done.items()}, place, path)


FIGURE_DRAWERS: dict[str, Callable[[dict[str, Network], str, Path], str]] = {
    "study": _curves,
    "ladder": _waterfall,
    "learning_rate": _rates,
    "layers": _trade_offs,
    "ablation": _dots,
    "hybrids": _trade_offs,
    "best": _curves,
}
FIGURE_CAPTIONS = {
    "study": "Top-1 and loss, epoch by epoch: mean over the seeds, and a band of one standard deviation",
    "ladder": "From the study's layer to the right one: what each repair adds to top-1 on the test images",
    "learning_rate": "Top-1 on the validation images against the initial learning rate, with one standard deviation",
    "layers": "Top-1 on the test images against throughput and parameters, with one standard deviation",
    "ablation": "Top-1 on the test images, each seed and the mean",
    "hybrids": "Top-1 on the test images against throughput and parameters, with one standard deviation",
    "best": "Top-1 and loss, epoch by epoch: mean over the seeds, and a band of one standard deviation",
}


def not_run(chapters: list[Chapter], root: Path) -> str:
    """The experiments of which there is no run at all, with command and estimate."""
    rows = []
    for name, experiment in EXPERIMENTS.items():
        if any(begun(name, chapter) for chapter in chapters):
            continue
        count = len(experiment.variations) * len(experiment.seeds)
        estimates = "; ".join(_estimates(experiment, root)) or "`--dry-run` measures it"
        rows.append([name, experiment.question, str(count), f"`python experiments.py --only {name}`", estimates])
    if not rows:
        return ""
    return "## Not run yet\n\n" + table(["experiment", "question", "runs", "command", "estimated time"], rows)


def _estimates(experiment: Experiment, root: Path) -> list[str]:
    """`120 h on <device> (<conditions>)` for each estimate that covers the experiment."""
    paths = sorted(root.glob(f"*/{ESTIMATES}"))
    texts = [(_estimate(experiment, list(experiment.variations), path), path.parent.name) for path in paths]
    return [f"{text} ({name.replace('_', ', ')})" for text, name in texts if text]


def _estimate(experiment: Experiment, labels: list[str], path: Path) -> str:
    """`120 h on <device>` for all the seeds of these networks, as `--dry-run` has measured it; else nothing."""
    if not path.exists():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    each = content["hours_per_run"]
    hours = len(experiment.seeds) * sum(each.get(experiment.variations[label].name, math.nan) for label in labels)
    at_once = f", {content['jobs']} runs at once" if content["jobs"] > 1 else ""
    return "" if math.isnan(hours) else f"{hours:,.1f} h on {content['device']}{at_once}"


def other_runs(chapter: Chapter) -> str:
    """The runs of no experiment, such as of one that was changed: they too were started."""
    known = {variation.name for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    others = {name: Network(name, records) for name, records in chapter.records.items() if name not in known}
    return (
        "### Runs of no experiment of today\n\n" + results_table(dict(sorted(others.items())), None) if others else ""
    )


def write_report(root: Path, target: Path, conclusions: str) -> str:
    """Draw the figures under `target`/results/figures and give the text of RESULTS.md."""
    chapters = read_chapters(root)
    folder = target / FIGURES
    shutil.rmtree(folder, ignore_errors=True)  # no figure stays of what is no longer there
    parts = [INTRODUCTION, f"## Conclusions\n\n{conclusions.strip()}\n", METHOD]
    for chapter in chapters:
        parts.append(f"## {chapter.title}\n\n{chapter.software}\n")
        parts += [section(name, chapter, folder, FIGURES) for name in EXPERIMENTS]
        parts.append(other_runs(chapter))
    parts += [not_run(chapters, root), SOURCES]
    text = "\n".join(part for part in parts if part)
    (target / RESULTS).write_text(text, encoding="utf-8")
    return text


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs_dir", type=Path, default=FOLDER, help="folder of the runs of experiments")
    parser.add_argument("--target", type=Path, default=PROJECT, help="folder for RESULTS.md and results/figures/")
    options = parser.parse_args(argv)
    if not options.target.is_dir():
        raise InputError(f"target: there is no folder {options.target}")
    conclusions = (PROJECT / CONCLUSIONS).read_text(encoding="utf-8")
    write_report(options.runs_dir, options.target, conclusions)
    print(options.target / RESULTS)


if __name__ == "__main__":
    with one_line_errors():
        main()
