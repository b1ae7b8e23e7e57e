"""Logs of runs as `main_general.py` writes them, with figures made up for the tests of the report."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence.processes import facts
from evidence.runs import Conditions, Run, Variation

IMAGES = 1000  # of the test: a tenth of a point each


def conditions(root: Path, data: str = "CIFAR-10", scale: float = 1.0) -> Conditions:
    return Conditions("cifar10", "data", data, "cpu", "fp32", scale, scale, root)


def write_run(
    conditions: Conditions,
    variation: Variation,
    seed: int,
    top1: Sequence[float],
    training_mode: Sequence[float] = (),
    train: Sequence[float] = (),
    *,
    epochs: int | None = None,
    predictions: int = 0,
    failure: str = "",
    **config: Any,
) -> Path:
    """A run with this top-1 on the test images after each epoch; its folder.

    Args:
        training_mode: top-1 of the same weights tested in training mode.
        train: top-1 in training; 50 % where it is not given.
        epochs: another number of epochs than the variation's.
        predictions: of how many last epochs the folder keeps them.
        config: further entries of config.json.
    """
    run = Run(variation, seed, conditions)
    folder = run.folder / "Lambda" / "run"
    folder.mkdir(parents=True)
    settings = dataclasses.asdict(
        run.args if conditions.scale == "full" else Run(variation, seed, full(conditions)).args
    )
    settings |= {"epochs": epochs} if epochs else {}
    content = {
        "id": f"{conditions.name} {run.label}",
        "number": 1,
        "started": "2026-11-25T12:00:00",
        "settings": settings,
        "device": "a CPU",
        "precision": conditions.precision,
        "parameters": 12_850_090,
        "learning_rates": [[settings["initial_lr"] * epoch] * 2 for epoch in range(1, settings["epochs"] + 1)],
        "data": {"train_images": 49_920, "test_images": IMAGES},
        "versions": {"python": "3.11.7", "torch": "2.6.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
    }
    content |= facts(run, "study", 2) | config
    (folder / "config.json").write_text(json.dumps(content))
    lines = []
    for epoch, test in enumerate(top1, start=1):
        row = {"epoch": epoch, "learning_rate": 0.0005 * epoch, "train_loss": 1.0, "test_loss": 2.0, "test_top1": test}
        row |= {"train_top1": train[epoch - 1] if train else 50.0, "validation_top1": test - 1}
        row |= {"train_seconds": 30.0, "test_seconds": 15.0, "images_per_second": 100.0, "peak_memory_gib": 1.5}
        if training_mode:
            row |= {"test_top1_training_mode": training_mode[epoch - 1], "test_loss_training_mode": 2.1}
        lines.append(json.dumps(row) + "\n")
        if epoch > len(top1) - predictions:
            modes = {"evaluation": test, **({"training_mode": training_mode[epoch - 1]} if training_mode else {})}
            write_predictions(folder, epoch, modes)
    (folder / "metrics.jsonl").write_text("".join(lines))
    if failure:
        (run.folder / "failure.json").write_text(json.dumps({"kind": failure, "message": "at epoch 3"}))
    return folder


def full(conditions: Conditions) -> Conditions:
    return dataclasses.replace(conditions, epochs_scale=1.0, images_scale=1.0)


def write_predictions(folder: Path, epoch: int, modes: dict[str, float]) -> None:
    """predictions/epoch<number>.npz in which the first images are right, as many as the top-1 of a mode says."""
    (folder / "predictions").mkdir(exist_ok=True)
    labels = (np.arange(IMAGES) % 10).astype(np.uint8)
    right = {mode: np.arange(IMAGES) < round(top1 * IMAGES / 100) for mode, top1 in modes.items()}
    arrays = {mode: np.where(hits, labels, (labels + 1) % 10).astype(np.uint8) for mode, hits in right.items()}
    np.savez_compressed(folder / "predictions" / f"epoch{epoch:04d}.npz", labels=labels, **arrays)
