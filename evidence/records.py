"""What a run has left in its folder, and how far it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_state.run_folder import CONFIG, CONFUSION, METRICS, checkpoint_files, read_config

FAILURE = "failure.json"


@dataclass(frozen=True)
class Record:
    """What a run has left in its folder."""

    folder: Path  # of main_general.py
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    failure: dict[str, str] | None  # kind: diverged or out of memory; message

    @property
    def state(self) -> str:
        """`done`, `cut off`, or the kind of its failure."""
        if self.failure:
            return self.failure["kind"]
        settings = self.config["settings"]
        if len(self.rows) < min(settings["epochs"], settings.get("stop_after") or settings["epochs"]):
            return "cut off"
        # killed between its last epoch and its confusion matrix, it has the checkpoint to make one
        owed = checkpoint_files(self.folder) and not (self.folder / CONFUSION).exists()
        return "cut off" if owed else "done"

    @property
    def progress(self) -> str:
        """Its state as a reader is told: what is cut off may be on its way."""
        return "unfinished" if self.state == "cut off" else self.state

    @property
    def seed(self) -> int:
        return self.config["settings"]["seed"]

    @property
    def variation(self) -> str:
        return self.config["experiment"]["run"]

    @property
    def label(self) -> str:
        return f"{self.variation} seed {self.seed}"


def read_record(folder: Path) -> Record | None:
    """What lies in a run's folder `…/seed-<n>`, the run that was begun first; None where none was.

    Raises:
        InputError: `config.json` is damaged.
    """
    configs = {path.parent: config_of(path.parent) for path in sorted(folder.glob(f"*/*/{CONFIG}"))}
    if not configs:
        return None
    first = min(configs, key=lambda run: str(configs[run].get("started", "")))
    path = folder / FAILURE
    failure = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return Record(first, configs[first], read_rows(first), failure)


def config_of(folder: Path) -> dict[str, Any]:
    """A run's `config.json`, its device in the words of today.

    Raises:
        InputError: it is damaged.
    """
    config = read_config(folder)
    if isinstance(config.get("device"), str):
        config["device"] = config["device"].replace(", 1 threads", ", 1 thread")  # as earlier versions wrote
    return config


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """What a run has written into metrics.jsonl, a row for each epoch."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that was being written when the run was killed, or a damaged one
            break
    return rows
