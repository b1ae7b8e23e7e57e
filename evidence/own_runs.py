"""The runs of one's own as a table, and what differs between them, compared with seeds as the experiments are.

An arm is all that makes a run's figures, but for the seed. Arms are compared where data, epochs, precision and kind of
device agree, each with the one of them that was begun first; `evidence/contrasts.py` has the model.
"""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from command_line.errors import InputError
from evidence.analysis import Finding
from evidence.contrasts import estimate, holm
from evidence.logs import Remarks
from evidence.questions import Comparison
from evidence.records import config_of, read_rows
from evidence.tables import interval, mean_and_deviation, probability, signed, table
from run_state.checkpoints import RunState
from run_state.progress import duration
from run_state.run_folder import CONFIG
from run_state.saved_settings import saved_settings
from user_input import FREE_ON_RESUME, UserInput

# What has a column of its own, or says where the data lie
NAMED = {"model", "depth", "stages", "dataset", "data_dir", "seed"}
NEEDED = ("epoch", "train_top1", "test_top1", "test_loss", "train_seconds", "test_seconds")


@dataclass(frozen=True)
class OwnRun:
    """A run as its folder tells it."""

    folder: Path
    config: dict[str, Any]
    args: UserInput
    rows: list[dict[str, Any]]  # of metrics.jsonl, one at least

    @property
    def network(self) -> str:
        """`λ-ResNet-50`, with the stage word where it is not that of the model; or a network of another name."""
        if other := self.config.get("experiment", {}).get("network"):
            return str(other)
        usual = UserInput(model=self.args.model).stage_word
        word = "" if self.args.stage_word == usual else f" {self.args.stage_word}"
        return f"{'λ-' * (self.args.model == 'lambda')}ResNet-{self.args.depth}{word}"

    @property
    def data(self) -> str:
        return Path(self.args.data_dir).name if self.args.dataset == "imagefolder" else self.args.dataset

    @property
    def done(self) -> bool:
        """Whether it has come to the end that its settings describe."""
        return RunState(self.config, self.rows).ended(self.args)

    @property
    def top1(self) -> float:
        """Percent, test images, after the last epoch."""
        return self.rows[-1]["test_top1"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch that did best on the validation images; None without any: test images choose nothing."""
        if "validation_top1" not in self.rows[-1]:
            return None
        return max(self.rows, key=lambda row: row.get("validation_top1", 0.0))

    @property
    def seconds(self) -> float:
        return sum(row["train_seconds"] + row["test_seconds"] for row in self.rows)

    @cached_property
    def conditions(self) -> tuple[Any, ...]:
        """What runs must agree in to be compared."""
        data = self.config["data"]
        fingerprint = str(data.get("fingerprint", {}).get("test"))
        counts = (data["train_images"], data["test_images"])
        device = str(self.config["device"])
        length = self.args.epochs, self.args.last_epoch
        return self.data, fingerprint, counts, length, self.config["precision"], device

    def settings(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self.args, name) for name in names}


def read_runs(root: Path) -> tuple[list[OwnRun], Remarks]:
    """All the runs below a folder that have done an epoch, in the order in which they were begun.

    Raises:
        InputError: there is none.
    """
    runs: list[OwnRun] = []
    remarks: Remarks = []
    for path in sorted(root.rglob(CONFIG)):
        folder = path.parent
        try:
            runs.append(_read(folder))
        except (InputError, OSError, LookupError, TypeError, AttributeError) as error:
            remarks.append(f"{folder.relative_to(root)} is left out: {' '.join(str(error).split()) or 'damaged'}")
    if not runs:
        raise InputError(f"runs: there is no run that has done an epoch in {root}" + "".join(f"; {r}" for r in remarks))
    return sorted(runs, key=lambda run: (str(run.config.get("started", "")), run.folder)), remarks


def _read(folder: Path) -> OwnRun:
    config = config_of(folder)
    run = OwnRun(folder, config, saved_settings(config, folder / CONFIG), read_rows(folder))
    if not run.rows:
        raise InputError("no epoch is done")
    if missing := [name for name in NEEDED for row in run.rows if not isinstance(row.get(name), int | float)]:
        raise InputError(f"a row of its metrics.jsonl has no {missing[0]}")
    _ = run.conditions, run.best  # which a damaged config.json may not have
    return run


def differing(runs: Sequence[OwnRun]) -> list[str]:
    """The settings in which the runs differ, of those that make a run's figures and have no column of their own."""
    names = [field.name for field in dataclasses.fields(UserInput) if field.name not in FREE_ON_RESUME | NAMED]
    return [name for name in names if len({getattr(run.args, name) for run in runs}) > 1]


# ------------------------------------------------------------------------------------------------------ as text


def as_markdown(runs: Sequence[OwnRun]) -> str:
    """A row for each run, by data and top-1; then each arm's mean, and the arms beside each other."""
    names = differing(runs)
    rows = [
        [run.network, run.data, _words(run, names), str(run.args.seed), _top1(run), _best(run), duration(run.seconds)]
        for run in ordered(runs)
    ]
    head = ["network", "data", "settings that differ", "seed", "top-1 test (%)", "best by validation (%)", "time"]
    parts = [table(head, rows)]
    for together in by_conditions(runs):
        parts += [means(together), comparisons(together)]
    return "\n".join(part for part in parts if part)


def as_csv(runs: Sequence[OwnRun]) -> str:
    """The same rows with more digits, each setting that differs in a column of its own."""
    names = differing(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["folder", "network", "data", *names, "seed", "epochs_done", "epochs", "test_top1", "test_top5", "test_loss"]
    writer.writerow([*head, "best_epoch", "best_test_top1", "seconds", "parameters", "device", "precision"])
    for run in ordered(runs):
        last, best = run.rows[-1], run.best
        row = [run.folder, run.network, run.data, *run.settings(names).values(), run.args.seed, len(run.rows)]
        row += [run.args.epochs, last["test_top1"], last.get("test_top5", ""), last["test_loss"]]
        row += [best["epoch"], best["test_top1"]] if best else ["", ""]
        row += [round(run.seconds, 1), run.config.get("parameters", "")]
        writer.writerow([*row, run.config["device"], run.config["precision"]])
    return text.getvalue()


def ordered(runs: Iterable[OwnRun]) -> list[OwnRun]:
    """By data set, then the highest top-1 first."""
    return sorted(runs, key=lambda run: (run.data, -run.top1, run.folder))


def _words(run: OwnRun, names: Iterable[str]) -> str:
    """`stem cifar, scope 7`, without what is at its default."""
    usual = UserInput()
    changed = {name: value for name, value in run.settings(names).items() if value != getattr(usual, name)}
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in changed.items()) or "–"


def _top1(run: OwnRun) -> str:
    done = len(run.rows)
    return f"{run.top1:.2f}" + ("" if done == run.args.epochs else f" ({done} of {run.args.epochs} epochs)")


def _best(run: OwnRun) -> str:
    best = run.best
    return f"{best['test_top1']:.2f} (epoch {best['epoch']})" if best else "–"


# ------------------------------------------------------------------------------------------------------ with seeds


def by_conditions(runs: Sequence[OwnRun]) -> list[list[OwnRun]]:
    """The finished runs that may be compared, in one list where they agree; lists of several arms or seeds alone."""
    found: dict[tuple[Any, ...], list[OwnRun]] = {}
    for run in runs:
        if run.done:
            found.setdefault(run.conditions, []).append(run)
    return [together for together in found.values() if len(together) > 1]


def arms(runs: Sequence[OwnRun]) -> dict[str, dict[int, float]]:
    """Top-1 by seed of each arm; of two runs of one seed, the one that was begun first."""
    names = differing(runs)
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        words = _words(run, names)
        name = run.network if words == "–" else f"{run.network}, {words}"
        found.setdefault(name, {}).setdefault(run.args.seed, run.top1)
    return found


def means(runs: Sequence[OwnRun]) -> str:
    """Mean and standard deviation of each arm over its seeds; nothing where all have one."""
    values = arms(runs)
    if all(len(each) == 1 for each in values.values()):
        return ""
    rows = [[arm, mean_and_deviation(each.values())] for arm, each in values.items()]
    return f"{_conditions(runs)}, mean ± standard deviation (seeds):\n\n" + table(["network", "top-1 test (%)"], rows)


def comparisons(runs: Sequence[OwnRun]) -> str:
    """Each arm beside the first, within a seed; nothing where no two share one."""
    values = arms(runs)
    first, *others = values
    found = [(Comparison(arm, first), estimate(values, {arm: 1.0, first: -1.0})) for arm in others]
    known = [(comparison, one) for comparison, one in found if one is not None]
    adjusted = holm([one.p for _, one in known])
    rows = []
    for (comparison, one), p in zip(known, adjusted, strict=True):
        verdict = Finding(comparison, one, p).verdict
        seeds = ", ".join(str(seed) for seed in one.each)
        rows.append([comparison.title, signed(one.points), interval(one.interval()), probability(p), seeds, verdict])
    if not rows:
        return ""
    head = ["top-1 test", "points", "95 % interval", "p (Holm)", "seeds", "so it is"]
    return f"{_conditions(runs)}, differences within a seed:\n\n" + table(head, rows)


def _conditions(runs: Sequence[OwnRun]) -> str:
    first = runs[0]
    epochs = f"{first.args.epochs} epochs" if first.args.epochs > 1 else "1 epoch"
    return f"{first.data}, {epochs}, {first.config['precision']}, {first.config['device']}"
