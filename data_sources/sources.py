"""The data sets by name: CIFAR-10 and CIFAR-100, folders of images by class, and digits that scikit-learn carries.

`read_source` makes two `ImageSet`s and the names of the classes of each; a new data set is a function here and a line
in `SOURCES`. No image is read before it is asked for.
"""

import shutil
import tarfile
import urllib.error
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from command_line.errors import InputError
from data_sources.image_set import ImageSet, shuffled, split
from data_sources.images import read_image

DIGITS_TEST = 0.2  # share of the digits that are for the test


@dataclass(frozen=True)
class Source:
    """A data set as it is published."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


def read_source(dataset: str, folder: Path) -> Source:
    """The data set of that name, which is in `folder`, or comes there by a download.

    Raises:
        InputError: files are missing, damaged or do not agree.
    """
    return SOURCES[dataset](folder)


def class_count(dataset: str, folder: Path) -> int:
    """The number of classes, without reading an image."""
    counts = {"cifar10": 10, "cifar100": 100, "digits": 10}
    return counts.get(dataset) or len(_image_folder(folder / "train").classes)


def training_count(dataset: str, folder: Path) -> int:
    """The number of training images, without reading one."""
    counts = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1437}
    return counts.get(dataset) or len(_image_folder(folder / "train").samples)


def _cifar(folder: Path, name: str, kind: type[CIFAR10]) -> Source:
    archive, had_folder = folder / kind.filename, folder.exists()
    try:
        parts = [kind(str(folder), train=train, download=True) for train in (True, False)]
    except (urllib.error.URLError, tarfile.TarError, EOFError, zlib.error, RuntimeError, OSError) as error:
        state = "is truncated or damaged, and" if archive.is_file() else "is not there, and"
        if not had_folder:
            shutil.rmtree(folder, ignore_errors=True)  # what the failed download left
        raise InputError(
            f"dataset: {archive} {state} {name} could not be downloaded ({error}); put {kind.filename} from "
            f"{kind.url} into {folder}, or try --dataset digits, which needs no download"
        ) from error
    return Source(_labelled(parts[0]), _labelled(parts[1]), tuple(parts[0].classes))


def _image_folders(folder: Path) -> Source:
    train, test = (_image_folder(folder / part) for part in ("train", "test"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(
            f"data_dir: the classes in {folder}/train and /test differ ({', '.join(odd[:5])} is in one only)"
        )
    # the files lie class by class, and CIFAR-10's do not: a network tested in training mode would see single classes
    mixed = _labelled(test)
    return Source(_labelled(train), mixed.part(shuffled(mixed)), tuple(train.classes))


def _image_folder(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(
            f"data_dir: there is no folder {folder}; imagefolder takes a folder with train/<class>/ and test/<class>/"
        )
    try:
        return ImageFolder(str(folder), loader=read_image)
    except OSError as error:  # no class folder, or one without an image: the message names it
        raise InputError(f"data_dir: {folder}: {error}") from error


def _digits(folder: Path) -> Source:
    from sklearn.datasets import load_digits  # here, since it takes a second, and most runs do without

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = split(ImageSet(partial(_digit, images), digits.target.astype(np.int64)), DIGITS_TEST)
    assert test is not None
    return Source(train, test, tuple(map(str, digits.target_names)))


SOURCES: dict[str, Callable[[Path], Source]] = {
    "cifar10": partial(_cifar, name="cifar10", kind=CIFAR10),
    "cifar100": partial(_cifar, name="cifar100", kind=CIFAR100),
    "imagefolder": _image_folders,
    "digits": _digits,
}


def _labelled(dataset: CIFAR10 | ImageFolder) -> ImageSet:
    return ImageSet(partial(_first, dataset), np.asarray(dataset.targets))


# These are functions of the module, and not closures, so that a loader's worker can be sent them on every system.
def _first(dataset: Dataset, i: int) -> Image.Image:
    return dataset[i][0]


def _digit(images: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(images[i]).convert("RGB")
