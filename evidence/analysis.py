"""What the runs of an experiment come to, under the conditions of one chapter: values, differences, curves."""

import itertools
import statistics
from dataclasses import dataclass
from functools import cached_property

from evidence.contrasts import Estimate, estimate, estimate_in_modes, holm, with_new_images
from evidence.logs import Chapter, Remarks
from evidence.predictions import TOP1, of_images
from evidence.questions import Column, Comparison, Experiment
from evidence.records import Record
from evidence.sources import REPEATED, STUDYS_RUNS, R, S, study_mean

SIGNIFICANCE = 0.05
NAN = float("nan")


@dataclass(frozen=True)
class Network:
    """The runs of one variation under the label of an experiment."""

    label: str
    records: list[Record]
    last_epochs: int = 1
    planned: tuple[int, ...] = ()  # seeds

    @property
    def done(self) -> list[Record]:
        return [record for record in self.records if record.state == "done"]

    @property
    def counting(self) -> list[Record]:
        """The runs whose epochs count in curves: those that are done, and those on their way."""
        return [record for record in self.records if record.state in ("done", "cut off")]

    def of_seed(self, seed: int) -> Record:
        return next(record for record in self.records if record.seed == seed)

    def at(self, epoch: int, key: str) -> dict[int, float]:
        """A figure after an epoch, by seed, of the runs that got so far."""
        rows = {record.seed: record.rows[epoch - 1] for record in self.counting if epoch <= len(record.rows)}
        return {seed: row[key] for seed, row in rows.items() if key in row}

    @property
    def parameters(self) -> float:
        """In millions."""
        return self.records[0].config["parameters"] / 1e6

    @property
    def states(self) -> str:
        """`2 of 3 seeds done, seed 2 unfinished after epoch 12`; nothing where all are done."""
        parts = [
            f"seed {record.seed} {record.progress} after epoch {len(record.rows)}"
            for record in self.records
            if record.state != "done"
        ]
        begun = {record.seed for record in self.records}
        if waiting := [str(seed) for seed in self.planned if seed not in begun]:
            parts.append(f"seed{'s' if len(waiting) > 1 else ''} {', '.join(waiting)} not begun")
        return ", ".join([f"{len(self.done)} of {len(begun) + len(waiting)} seeds done", *parts]) if parts else ""

    def endpoint(self, record: Record, key: str) -> float | None:
        """Mean of a figure over the last epochs that count."""
        values = [row[key] for row in record.rows[-self.last_epochs :] if key in row]
        return statistics.mean(values) if len(values) == min(self.last_epochs, len(record.rows)) > 0 else None

    def endpoints(self, key: str) -> dict[int, float]:
        """By seed, of the runs that are done and have this figure."""
        found = {record.seed: self.endpoint(record, key) for record in self.done}
        return {seed: value for seed, value in found.items() if value is not None}

    def medians(self, key: str) -> list[float]:
        """A figure's median over all epochs of each run that is done and has it: a pause in one does not count."""
        return [
            statistics.median(row[key] for row in record.rows)
            for record in self.done
            if all(key in row for row in record.rows)
        ]


@dataclass(frozen=True)
class Finding:
    """A comparison, and what came of it."""

    comparison: Comparison
    estimate: Estimate | None  # None where the two have no seed in common
    p: float = NAN  # by Holm, over all the comparisons of the experiment
    with_images: tuple[float, float] = (NAN, NAN)  # the interval that covers other test images too

    @property
    def verdict(self) -> str:
        """What it allows to say."""
        if self.estimate is None:
            return "not yet measured"
        if not self.estimate.known:
            return "no interval"
        if self.p >= SIGNIFICANCE:
            return "not told apart"
        return "higher" if self.estimate.points > 0.0 else "lower"


@dataclass(frozen=True)
class Answer:
    """An experiment under the conditions of a chapter."""

    name: str
    experiment: Experiment
    chapter: Chapter
    remarks: Remarks  # what is found odd on the way

    @cached_property
    def networks(self) -> dict[str, Network]:
        """By label, those that were begun."""
        return {
            label: Network(
                label, self.chapter.records[variation.name], self.experiment.last_epochs, self.experiment.seeds
            )
            for label, variation in self.experiment.variations.items()
            if variation.name in self.chapter.records
        }

    @property
    def repeats(self) -> bool:
        """Whether the study's own figures may stand beside these: its schedule, on its data."""
        return self.name in REPEATED and self.chapter.comparable

    def studys(self, comparison: Comparison, part: str) -> float | None:
        """The study's own value of a comparison over the same epochs, `part` being `test` or `train`."""
        networks = STUDYS_RUNS.get(comparison.ours), STUDYS_RUNS.get(comparison.theirs)
        if not (self.repeats and self.epochs and networks == (S, R)):
            return None
        return study_mean(S, part, self.epochs) - study_mean(R, part, self.epochs)

    @property
    def epochs_of_each(self) -> list[range]:
        """Those whose mean counts: one range for each length of the runs that are done, the longest last."""
        lengths = {len(record.rows) for network in self.networks.values() for record in network.done}
        return [range(max(1, last - self.experiment.last_epochs + 1), last + 1) for last in sorted(lengths)]

    @property
    def epochs(self) -> range:
        """The same of the longest runs; none where no run is done."""
        return self.epochs_of_each[-1] if self.epochs_of_each else range(0)

    @cached_property
    def columns(self) -> list[Column]:
        """The networks in the modes that they are compared in."""
        return list(dict.fromkeys(c for comparison in self.experiment.comparisons for c in comparison.weights))

    @property
    def arms(self) -> int:
        """Of the model: a network that stands in two modes is one (`beside_reference`)."""
        return len({label for label, _ in self.columns})

    @cached_property
    def test(self) -> list[Finding]:
        """The comparisons on the test images."""
        values = {
            (label, mode): self.networks[label].endpoints(TOP1[mode])
            for label, mode in self.columns
            if label in self.networks
        }
        found = [(one, estimate_in_modes(values, one.weights)) for one in self.experiment.comparisons]
        adjusted = holm([one.p if one else NAN for _, one in found])
        return [
            Finding(comparison, one, p, self._with_images(comparison, one) if one else (NAN, NAN))
            for (comparison, one), p in zip(found, adjusted, strict=True)
        ]

    @cached_property
    def training(self) -> list[Finding]:
        """The same in training accuracy, which knows no mode: secondary, each p-value as it is."""
        values = {label: network.endpoints("train_top1") for label, network in self.networks.items()}
        found = [(one, estimate(values, _of_labels(one))) for one in self.experiment.comparisons if one.less is None]
        return [Finding(comparison, one, one.p if one else NAN) for comparison, one in found]

    def differences(self, comparison: Comparison, part: str) -> list[Estimate]:
        """A comparison epoch by epoch, `part` being `test` or `train`, over all the runs that got so far."""
        found: list[Estimate] = []
        for epoch in itertools.count(1):
            if part == "train":
                of_labels = {label: network.at(epoch, "train_top1") for label, network in self.networks.items()}
                one = estimate(of_labels, _of_labels(comparison))
            else:
                of_columns = {
                    (label, mode): self.networks[label].at(epoch, TOP1[mode])
                    for label, mode in self.columns
                    if label in self.networks
                }
                one = estimate_in_modes(of_columns, comparison.weights)
            if one is None:
                return found
            found.append(one)
        return found

    def _with_images(self, comparison: Comparison, found: Estimate) -> tuple[float, float]:
        """The interval for new test images, where the runs have their predictions."""
        seeds = [
            [(weight, self.networks[label].of_seed(seed), mode) for (label, mode), weight in comparison.weights.items()]
            for seed in found.each
        ]
        images = of_images(seeds, self.epochs, self.remarks)
        return (NAN, NAN) if images is None else with_new_images(found, images)


def _of_labels(comparison: Comparison) -> dict[str, float]:
    return {comparison.ours: 1.0, comparison.theirs: -1.0}
