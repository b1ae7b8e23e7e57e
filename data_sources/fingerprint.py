"""What tells a data set from another: a run that goes on with other data would call dogs cats.

A part's fingerprint is `{"counts": [images of each class], "files": digest of the files' names and sizes}`.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

NAMED = 3  # differences that a message names


def fingerprint(labels: np.ndarray, classes: int, files: Iterable[tuple[str, int]] = ()) -> dict[str, Any]:
    """Of images with these labels (n,); `files` has each one's name within its part, and its size in bytes."""
    digest = hashlib.sha256()
    for name, size in sorted((unicodedata.normalize("NFC", name), size) for name, size in files):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return {"counts": np.bincount(labels, minlength=classes).tolist(), "files": digest.hexdigest()}


def differences(saved: Mapping[str, Any], classes: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    """How the data of these classes and fingerprints differ from what a run's config.json has under `data`.

    Of a run of an earlier version, which has no fingerprint, the classes alone are compared.
    """
    there = saved.get("classes")
    if not isinstance(there, list):
        return []
    found = _of_classes(there, list(classes))
    if not found and isinstance(saved.get("fingerprint"), dict):
        found = [line for part in {**parts, **saved["fingerprint"]} for line in _of_part(part, saved, classes, parts)]
    return found[:NAMED] + ([f"and {len(found) - NAMED} more"] if len(found) > NAMED else [])


def _of_classes(there: list[Any], here: list[str]) -> list[str]:
    if sorted(map(str, there)) == sorted(here):
        return [] if there == here else ["the classes have another order"]
    if len(there) == len(here):
        pairs = zip(here, there, strict=True)
        return [f"class {number} is {one}, there {other}" for number, (one, other) in enumerate(pairs) if one != other]
    gone, new = ([name for name in one if name not in other] for one, other in ((there, here), (here, there)))
    return [f"class {name} is no more" for name in gone] + [f"class {name} is new" for name in new]


def _of_part(part: str, saved: Mapping[str, Any], classes: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    there, here = saved["fingerprint"].get(part), parts.get(part)
    if there == here:
        return []
    if here is None or not isinstance(there, dict):
        return [f"there are {'no' if here is None else 'now'} {part} images of their own"]
    counts = there.get("counts")
    if isinstance(counts, list) and len(counts) == len(classes) and counts != here["counts"]:
        rows = zip(classes, here["counts"], counts, strict=True)
        return [f"{part} has {now} images of {name}, there {before}" for name, now, before in rows if now != before]
    return [f"the files of {part} have other names or sizes"]
