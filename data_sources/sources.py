"""The data sets by name: CIFAR-10 and CIFAR-100, folders of images by class, and digits that scikit-learn carries.

`read_source` makes the `ImageSet`s of training and test, and the names of the classes; a new data set is a function
here and a line in `SOURCES`. No image is read before it is asked for.
"""

import errno
import http.client
import os
import shutil
import tarfile
import urllib.error
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_md5

from command_line.errors import InputError
from data_sources.fingerprint import fingerprint
from data_sources.image_set import ImageSet, Source, split
from data_sources.layout import FolderOptions, counts, read_folders

DIGITS_TEST = 0.2  # share of the digits that are for the test
DOWNLOAD_FAILED = (
    *(urllib.error.URLError, http.client.HTTPException, tarfile.TarError),
    *(EOFError, zlib.error, RuntimeError, OSError),
)
NOT_WRITABLE = {getattr(errno, name, -1) for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT")}


def read_source(dataset: str, folder: Path, options: FolderOptions = FolderOptions()) -> Source:  # noqa: B008 - frozen
    """The data set of that name, which is in `folder`, or comes there by a download.

    Raises:
        InputError: files are missing, damaged or do not agree.
    """
    if dataset == "imagefolder":
        return read_folders(folder, options)
    source = SOURCES[dataset](folder)
    parts = {"train": source.train, "test": source.test}
    fingerprints = {name: fingerprint(part.labels, len(source.classes)) for name, part in parts.items()}
    return replace(source, fingerprint=fingerprints)


def class_count(dataset: str, folder: Path, options: FolderOptions) -> int:
    """The number of classes, without reading an image."""
    known = {"cifar10": 10, "cifar100": 100, "digits": 10}
    return known.get(dataset) or counts(folder, options)[0]


def training_count(dataset: str, folder: Path, options: FolderOptions) -> int:
    """The number of training images, without reading one."""
    known = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1437}
    return known.get(dataset) or counts(folder, options)[1]


def _cifar(folder: Path, name: str, kind: type[CIFAR10]) -> Source:
    archive, had_folder = folder / kind.filename, os.path.exists(folder)
    try:
        parts = [kind(str(folder), train=train, download=True) for train in (True, False)]
    except DOWNLOAD_FAILED as error:
        if not had_folder:
            _remove_download(folder, kind)
        raise InputError(_no_cifar(archive, name, kind, error)) from error
    return Source(_labelled(parts[0]), _labelled(parts[1]), tuple(parts[0].classes))


def _remove_download(folder: Path, kind: type[CIFAR10]) -> None:
    """What a failed download has left in a folder that it made, and the folder, if nobody else put anything there."""
    shutil.rmtree(folder / kind.base_folder, ignore_errors=True)
    with suppress(OSError):
        (folder / kind.filename).unlink(missing_ok=True)
        folder.rmdir()


def _no_cifar(archive: Path, name: str, kind: type[CIFAR10], error: Any) -> str:
    """Why the data set could not be had, and what to do."""
    if getattr(error, "errno", None) in NOT_WRITABLE:
        sound = os.path.isfile(archive) and check_md5(str(archive), kind.tgz_md5)
        what = f"{archive} is sound, but cannot be unpacked" if sound else f"{name} cannot be downloaded"
        return f"data_dir: {what} into {archive.parent} ({error.strerror}); take a data_dir with room to write"
    state = "is truncated or damaged, and" if os.path.isfile(archive) else "is not there, and"
    return (
        f"dataset: {archive} {state} {name} could not be downloaded ({type(error).__name__}: {error}); put "
        f"{kind.filename} from {kind.url} into {archive.parent}, or try --dataset digits, which needs no download"
    )


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
    "digits": _digits,
}


def _labelled(dataset: CIFAR10) -> ImageSet:
    return ImageSet(partial(_first, dataset), np.asarray(dataset.targets))


# These are functions of the module, and not closures, so that a loader's worker can be sent them on every system.
def _first(dataset: Dataset, i: int) -> Image.Image:
    return dataset[i][0]


def _digit(images: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(images[i]).convert("RGB")
