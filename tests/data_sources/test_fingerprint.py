"""A data set is known again, and what differs is named."""

from typing import Any

import numpy as np
import pytest

from data_sources.fingerprint import differences, fingerprint

CLASSES = ["cat", "dog"]
FILES = [("cat/0.png", 10), ("cat/1.png", 20), ("dog/0.png", 30)]
PARTS = {"train": fingerprint(np.array([0, 0, 1]), 2, FILES), "test": fingerprint(np.array([0, 1]), 2, FILES[1:])}
SAVED = {"classes": CLASSES, "fingerprint": PARTS}


def train(labels: list[int], files: list[tuple[str, int]]) -> dict[str, Any]:
    return PARTS | {"train": fingerprint(np.array(labels), 2, files)}


def test_the_same_files_in_any_order_are_the_same_data() -> None:
    assert differences(SAVED, CLASSES, train([1, 0, 0], FILES[::-1])) == []


DIFFERENT = {
    "renamed class": (["cat", "hound"], PARTS, "class 1 is hound, there dog"),
    "another order": (["dog", "cat"], PARTS, "the classes have another order"),
    "new class": (["bee", *CLASSES], PARTS, "class bee is new"),
    "lost class": (["cat"], PARTS, "class dog is no more"),
    "more images": (CLASSES, train([0, 0, 1, 1], [*FILES, ("dog/1.png", 5)]), "train has 2 images of dog, there 1"),
    "another size": (CLASSES, train([0, 0, 1], [*FILES[:2], ("dog/0.png", 31)]), "the files of train have other names"),
    "another name": (CLASSES, train([0, 0, 1], [*FILES[:2], ("dog/7.png", 30)]), "the files of train have other names"),
    "validation": (CLASSES, PARTS | {"validation": PARTS["test"]}, "there are now validation images of their own"),
    "no test": (CLASSES, {"train": PARTS["train"]}, "there are no test images of their own"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named(name: str) -> None:
    classes, parts, says = DIFFERENT[name]
    (line,) = differences(SAVED, classes, parts)
    assert says in line


def test_of_many_differences_three_are_named() -> None:
    there = {"classes": [f"old{i}" for i in range(10)], "fingerprint": PARTS}
    found = differences(there, [f"new{i}" for i in range(10)], PARTS)
    assert len(found) == 4
    assert found[-1] == "and 7 more"


@pytest.mark.parametrize("saved", [{}, {"classes": CLASSES}, {"classes": CLASSES, "fingerprint": 3}])
def test_a_run_of_an_earlier_version_goes_on(saved: dict[str, Any]) -> None:
    assert differences(saved, CLASSES, PARTS) == []


@pytest.mark.parametrize(
    "forged", [None, 3, [], {"counts": "x"}, {"counts": [1], "files": 2}, {"counts": [None, None]}]
)
def test_a_forged_fingerprint_is_a_difference(forged: Any) -> None:
    assert differences({"classes": CLASSES, "fingerprint": {**PARTS, "train": forged}}, CLASSES, PARTS)
