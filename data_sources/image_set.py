"""The images of a data set before they are read, and the parts that are made of them.

Every choice among images here is the same whatever the seed of a run, so that no run trains on another's validation
images. n images of a set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from command_line.errors import InputError

SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Where the images of a data set come from: `read(i)` gives image i of label `labels[i]`."""

    read: Callable[[int], Image.Image]
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: np.ndarray) -> "ImageSet":
        """The images `index`, in that order."""
        return ImageSet(partial(_read_part, self.read, index), self.labels[index])


# a function of the module, and not a closure, so that a loader's worker can be sent it on every system
def _read_part(read: Callable[[int], Image.Image], index: np.ndarray, i: int) -> Image.Image:
    return read(int(index[i]))


def shuffled(images: ImageSet) -> np.ndarray:
    """One order of all the images, the same every time."""
    return np.random.default_rng(SPLIT_SEED).permutation(len(images))


def split(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """Hold back a stratified share of the images, the same ones every time; None where it is nought.

    Raises:
        InputError: the share cannot be taken from every class.
    """
    if fraction == 0.0:
        return images, None
    from sklearn.model_selection import train_test_split  # here, since it takes a second, and most runs do without

    try:
        kept, held_back = train_test_split(
            np.arange(len(images)), test_size=fraction, stratify=images.labels, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(f"validation_fraction: {fraction} cannot be split off by class: {error}") from error
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
