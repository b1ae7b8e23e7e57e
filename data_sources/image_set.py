"""The images of a data set before they are read, and the parts that are made of them.

Every choice among images here is the same whatever the seed of a run, so that no run trains on another's validation
images. n images of a set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from command_line.errors import InputError

SPLIT_SEED = 0
Value = TypeVar("Value")


@dataclass(frozen=True)
class ImageSet:
    """Where the images of a data set come from: `read(i)` gives image i, of label `labels[i]` and called `name(i)`."""

    read: Callable[[int], Image.Image]
    labels: np.ndarray  # (n,) int64
    name: Callable[[int], str] = str  # its file, within the data set; of what has none, its number

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: np.ndarray) -> "ImageSet":
        """The images `index`, in that order."""
        read, name = partial(_of_part, self.read, index), partial(_of_part, self.name, index)
        return ImageSet(read, self.labels[index], name)


# a function of the module, and not a closure, so that a loader's worker can be sent it on every system
def _of_part(of_whole: Callable[[int], Value], index: np.ndarray, i: int) -> Value:
    return of_whole(int(index[i]))


@dataclass(frozen=True)
class Source:
    """A data set as it is published, or as it lies in a folder."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    validation: ImageSet | None = None  # one of its own
    whites: dict[str, float] = field(default_factory=dict)  # in its images of more than 8 bits
    notes: tuple[str, ...] = ()  # lines on what the images are like, and on what was left out
    fingerprint: dict[str, Any] = field(default_factory=dict)  # of each part, as `data_sources.fingerprint` has it


def shuffled(images: ImageSet) -> np.ndarray:
    """One order of all the images, the same every time."""
    return np.random.default_rng(SPLIT_SEED).permutation(len(images))


def split(
    images: ImageSet, fraction: float, setting: str = "validation_fraction", classes: Sequence[str] | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """Hold back a stratified share of the images, the same ones every time; None where it is nought.

    Raises:
        InputError: the share, which is that of the `setting`, cannot be taken from every class.
    """
    if fraction == 0.0:
        return images, None
    from sklearn.model_selection import train_test_split  # here, since it takes a second, and most runs do without

    counts = np.bincount(images.labels)
    if alone := np.flatnonzero(counts == 1).tolist():
        name = classes[alone[0]] if classes else alone[0]
        more = f", and {len(alone) - 1} other classes too" if len(alone) > 1 else ""
        raise InputError(f"{setting}: class {name} has one image{more}, which cannot be on both sides of a split")
    try:
        kept, held_back = train_test_split(
            np.arange(len(images)), test_size=fraction, stratify=images.labels, random_state=SPLIT_SEED
        )
    except ValueError as error:  # too few on one side of the split for an image of every class
        raise InputError(
            f"{setting}: {fraction:g} of {len(images):,} images cannot be split off with an image of each of "
            f"{np.sum(counts > 0)} classes on both sides"
        ) from error
    return images.part(kept), images.part(held_back)


def limit(images: ImageSet, count: int | None) -> ImageSet:
    """The first `count` images of one shuffle of them all: fewer are a part of more; None: all of them, as they are.

    Raises:
        InputError: there are not so many.
    """
    if count is None:
        return images
    if count > len(images):
        raise InputError(f"training_images: {count} is not allowed; there are {len(images)} to train on")
    return images.part(shuffled(images)[:count])
