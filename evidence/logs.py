"""Reads the logs of all runs for the report, and names what it cannot use.

Runs stand in one chapter where data, scale, precision and device agree to the letter, and in one cell of it where they
are seeds of one variation. A run whose log is wrong is left out, and a remark says so; nothing is mended in silence.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line.errors import InputError
from evidence.records import FAILURE, Record, config_of
from evidence.runs import Conditions, Variation
from run_state.run_folder import CONFIG, METRICS
from user_input import FREE_ON_RESUME

NEEDED = ("train_loss", "train_top1", "test_loss", "test_top1")  # in every row
NEEDED_OF_RUN = {
    "settings": ("seed", "epochs", "dataset", "data_dir", "device", "batch_size"),
    "experiment": ("run", "network", "data", "epochs_scale", "images_scale", "jobs"),
    "versions": ("python", "torch"),
    "data": ("train_images", "test_images"),
}
NOT_FINITE = "not finite"
BLOWN_UP = 10.0  # times its test loss in training mode, a network has in evaluation mode
Remarks = list[str]


class Unusable(Exception):
    """Why a run is left out."""


@dataclass(frozen=True)
class Chapter:
    """All the runs under the same conditions, on the same device."""

    conditions: Conditions
    device: str  # as the runs describe it
    records: dict[str, list[Record]]  # by variation, in the order of their seeds
    folder: str  # of its figures; two chapters never share one

    @property
    def title(self) -> str:
        conditions = self.conditions
        words = [conditions.data, self.device, conditions.precision]
        if conditions.scale != "full":
            shares = f"{conditions.epochs_scale:g} of the epochs, {conditions.images_scale:g} of the training images"
            words.append(shares)
        return ", ".join(words)

    @property
    def jobs(self) -> int:
        """Runs at once, as most of its runs were: on a CPU, the threads of each follow from it."""
        return statistics.mode(one.config["experiment"]["jobs"] for cell in self.records.values() for one in cell)

    @property
    def comparable(self) -> bool:
        """Whether the study's figures may stand beside these."""
        return self.conditions.data == "CIFAR-10" and self.conditions.scale == "full"


def read_logs(root: Path, table: Mapping[str, Variation]) -> tuple[list[Chapter], Remarks]:
    """The chapters, CIFAR-10 at full scale first, and what must be said of logs that are odd.

    Args:
        table: the variations of today's experiments, by name; a run of that name has to have their settings.
    """
    remarks: Remarks = []
    records: dict[Path, Record] = {}
    for folder in sorted(path for path in root.glob("*/*/seed-*") if path.is_dir()):
        try:
            if record := _read(folder, remarks, root):
                _check_place(record, folder, root)
                _check_settings(record, table.get(record.variation))
                records[folder] = record
        except Unusable as reason:
            remarks.append(f"{folder.relative_to(root)} is left out: {reason}")
    _drop_copies(records, remarks, root)
    return _chapters(records, remarks, root), remarks


# --------------------------------------------------------------------------------------------------- one run


def _read(folder: Path, remarks: Remarks, root: Path) -> Record | None:
    """The run in a seed's folder; None where none was begun."""
    configs = sorted(folder.glob(f"*/*/{CONFIG}"))
    if not configs:
        if any(path.is_dir() for path in folder.glob("*/*")):
            raise Unusable(f"it has no {CONFIG}")
        return None
    found: list[tuple[str, Path, dict[str, Any]]] = []
    for path in configs:
        try:
            config = config_of(path.parent)
        except InputError as error:
            raise Unusable(f"its {CONFIG} cannot be read") from error
        _check_config(config)
        found.append((str(config.get("started", "")), path.parent, config))
    found.sort(key=lambda entry: entry[:2])
    for _, other, _ in found[1:]:
        remarks.append(
            f"{folder.relative_to(root)} holds {len(found)} runs; the one that was begun first counts "
            f"({found[0][1].name}), and {other.name} does not"
        )
    _, path, config = found[0]
    rows = _read_rows(path / METRICS, folder.relative_to(root), remarks)
    failure = _read_failure(folder / FAILURE)
    if failure is None and (place := _not_finite(rows)):
        remarks.append(f"{folder.relative_to(root)} counts as not finite: {place}")
        failure = {"kind": NOT_FINITE, "message": place}
    remarks += [f"{folder.relative_to(root)}: {text}" for text in _blown_up(rows)]
    return Record(path, config, rows, failure)


def _check_config(config: dict[str, Any]) -> None:
    for key in ("device", "precision", "parameters"):
        if key not in config:
            raise Unusable(f"its {CONFIG} has no {key}")
    for part, keys in NEEDED_OF_RUN.items():
        if not isinstance(config.get(part), dict):
            raise Unusable(f"its {CONFIG} has no {part}")
        for key in keys:
            if key not in config[part]:
                raise Unusable(f"its {CONFIG} has no {part}.{key}")


def _read_rows(path: Path, name: Path, remarks: Remarks) -> list[dict[str, Any]]:
    """The epochs of a run: 1, 2, 3, … with all that the report needs of each."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise Unusable(f"line {number} of {METRICS} cannot be read") from None
            remarks.append(f"{name}: the last line of {METRICS} is not whole, and is passed over")
            break
        if not isinstance(row, dict) or "epoch" not in row:
            raise Unusable(f"line {number} of {METRICS} is no row of an epoch")
        if row in rows:
            remarks.append(
                f"{name}: epoch {row['epoch']} stands twice in {METRICS}, with the same figures; it counts once"
            )
            continue
        if row["epoch"] != len(rows) + 1:
            twice = row["epoch"] in [earlier["epoch"] for earlier in rows]
            problem = "stands twice, with other figures" if twice else f"stands where epoch {len(rows) + 1} should"
            raise Unusable(f"epoch {row['epoch']} of {METRICS} {problem}")
        for key in NEEDED:
            if not isinstance(row.get(key), int | float):
                raise Unusable(f"epoch {row['epoch']} of {METRICS} has no {key}")
        rows.append(row)
    return rows


def _read_failure(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    try:
        failure = json.loads(path.read_text(encoding="utf-8"))
        return {"kind": str(failure["kind"]), "message": str(failure["message"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"its {FAILURE} cannot be read") from error


def _not_finite(rows: list[dict[str, Any]]) -> str:
    """`test_loss of epoch 3 is nan`, or nothing."""
    for row in rows:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} of epoch {row['epoch']} is {value}"
    return ""


def _blown_up(rows: list[dict[str, Any]]) -> list[str]:
    """The epochs after which running statistics of batch norm fit the weights so badly that the test loss shows it."""
    return [
        f"after epoch {row['epoch']}, its test loss is {row['test_loss']:.3g} in evaluation mode and "
        f"{row['test_loss_training_mode']:.3g} in training mode"
        for row in rows
        if row["test_loss"] > BLOWN_UP * row.get("test_loss_training_mode", math.inf)
    ]


def _check_place(record: Record, folder: Path, root: Path) -> None:
    """A run says itself which seed of which variation it is, and under which conditions."""
    if folder.name != f"seed-{record.seed}":
        raise Unusable(f"it is a run of seed {record.seed}")
    if folder.parent.name != record.variation:
        raise Unusable(f"it is a run of {record.variation}")
    if (name := _conditions(record, root).name) != folder.parts[-3]:
        raise Unusable(f"it is a run of {name}")


def _check_settings(record: Record, variation: Variation | None) -> None:
    """A run has the settings that its variation has today, but for those that a scale changes."""
    if variation is None:
        return
    settings, experiment = record.config["settings"], record.config["experiment"]
    expected = dict(variation.settings) | {"network": variation.network}
    if (experiment["epochs_scale"], experiment["images_scale"]) != (1.0, 1.0):
        for name in ("epochs", "stop_after", "training_images"):
            expected.pop(name, None)
    there = settings | {"network": experiment["network"]}
    if odd := [f"{name} {there[name]}, not {expected[name]}" for name in expected if there.get(name) != expected[name]]:
        raise Unusable(f"{record.variation} has other settings today: it was run with {', '.join(odd)}")


def _drop_copies(records: dict[Path, Record], remarks: Remarks, root: Path) -> None:
    """Of folders whose runs have the same id, the first stays."""
    first: dict[str, Path] = {}
    for folder, record in list(records.items()):
        kept = first.setdefault(record.config["id"], folder)
        if kept != folder:
            remarks.append(
                f"{folder.relative_to(root)} is left out: it is a copy of {kept.relative_to(root)} (by its id)"
            )
            del records[folder]


# --------------------------------------------------------------------------------------- the runs side by side


def _chapters(records: dict[Path, Record], remarks: Remarks, root: Path) -> list[Chapter]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records.values():
        conditions = _conditions(record, root)
        key = (conditions.name, conditions.data, record.config["device"])
        groups.setdefault(key, []).append(record)
    _name_what_is_alike(groups, remarks)
    chapters, used = [], Counter[str]()
    for (name, _, device), group in sorted(groups.items()):
        used[name] += 1
        cells: dict[str, list[Record]] = {}
        for record in sorted(group, key=lambda record: (record.variation, record.seed)):
            cells.setdefault(record.variation, []).append(record)
        alike = {variation: _alike(cell, name, remarks) for variation, cell in cells.items()}
        folder = name if used[name] == 1 else f"{name}-{used[name]}"
        chapters.append(Chapter(_conditions(group[0], root), device, alike, folder))
    return sorted(chapters, key=lambda chapter: (not chapter.comparable, chapter.folder))


def _conditions(record: Record, root: Path) -> Conditions:
    settings, experiment = record.config["settings"], record.config["experiment"]
    return Conditions(
        dataset=settings["dataset"],
        data_dir=settings["data_dir"],
        data=experiment["data"],
        device=settings["device"].partition(":")[0],
        precision=record.config["precision"],
        epochs_scale=experiment["epochs_scale"],
        images_scale=experiment["images_scale"],
        root=root,
    )


def _name_what_is_alike(keys: Iterable[tuple[str, ...]], remarks: Remarks) -> None:
    """Names of data sets that make one folder name, and devices that lie in one folder: each kept apart, and named."""
    folders: dict[str, list[tuple[str, ...]]] = {}
    for key in keys:
        folders.setdefault(key[0], []).append(key)
    for name, found in sorted(folders.items()):
        for what, place in (("data sets of several names", 1), ("several devices", 2)):
            if len(names := sorted({key[place] for key in found})) > 1:
                remarks.append(f"{name} has runs on {what}, which are kept apart: {'; '.join(names)}")


def _alike(cell: list[Record], folder: str, remarks: Remarks) -> list[Record]:
    """The seeds of a cell whose settings agree with those of its first."""
    kept = cell[:1]
    for record in cell[1:]:
        if odd := _differences(cell[0], record):
            remarks.append(
                f"{folder}/{record.variation}/seed-{record.seed} is left out: its settings differ from those of seed "
                f"{cell[0].seed}: {', '.join(odd)}"
            )
        else:
            kept.append(record)
    return kept


def _differences(first: Record, other: Record) -> list[str]:
    """`heads 2, not 4` for each setting of the first that the other has differently, where both have it.

    Not of the data set's kind: the same images, by the name of the data, may lie in an archive or as files.
    """
    one = first.config["settings"] | {"network": first.config["experiment"]["network"]}
    two = other.config["settings"] | {"network": other.config["experiment"]["network"]}
    free = FREE_ON_RESUME - {"stop_after"} | {"seed", "dataset"}
    names = [name for name in one if name in two and name not in free]
    return [f"{name} {two[name]}, not {one[name]}" for name in names if one[name] != two[name]]
