"""What each run predicted of every test image, so that networks are compared image by image."""

import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evidence.logs import Remarks
from evidence.questions import EVALUATION, TRAINING_MODE
from evidence.records import Record
from run_state.run_folder import METRICS

PREDICTIONS = "predictions"
TOP1 = {EVALUATION: "test_top1", TRAINING_MODE: "test_top1_training_mode"}  # in a row of metrics.jsonl
Signed = tuple[float, Record, str]  # a weight, a run, and the mode that it is tested in


def of_images(seeds: Iterable[Sequence[Signed]], epochs: Sequence[int], remarks: Remarks) -> NDArray[np.float64] | None:
    """(n,) what a contrast is on each test image, in points: mean over the seeds and epochs.

    Args:
        seeds: for each seed, the runs of the contrast with their weights.

    Returns:
        None where a run has no predictions of these epochs, or other images in another order.
    """
    total, labels, count = None, None, 0
    for runs in seeds:
        count += 1
        for weight, record, mode in runs:
            if (found := _read(record, epochs, mode, remarks)) is None:
                return None
            if labels is not None and not np.array_equal(labels, found[0]):
                remarks.append(f"{record.label}: its predictions are of other test images, and are passed over")
                return None
            labels = found[0]
            total = weight * found[1] + (0.0 if total is None else total)
    return None if total is None else total / count


def _read(
    record: Record, epochs: Sequence[int], mode: str, remarks: Remarks
) -> tuple[NDArray[np.integer], NDArray[np.float64]] | None:
    """(n,) true classes, and how often each image was right over these epochs, in percent."""
    labels, right = None, []
    for epoch in epochs:
        path = record.folder / PREDICTIONS / f"epoch{epoch:04d}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays["labels"]
                right.append(labels == arrays[mode])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            remarks.append(f"{record.label}: {path.name} is passed over ({type(error).__name__})")
            return None
        if abs(100.0 * np.mean(right[-1]) - record.rows[epoch - 1][TOP1[mode]]) > 0.005:
            remarks.append(f"{record.label}: {path.name} is passed over: {METRICS} has another {TOP1[mode]}")
            return None
    return None if labels is None else (labels, 100.0 * np.mean(right, axis=0))
