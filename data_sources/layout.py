"""Which folders hold the training, the validation and the test images, and what becomes of them.

data_dir/train/<class>/*.jpg, data_dir/test/<class>/*.jpg    and, where there is one, data_dir/val/<class>/*.jpg
data_dir/train and data_dir/val                              val is the test
data_dir/<class>/*.jpg, or data_dir/train alone              with `test_fraction`
"""

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from os.path import isdir  # False, where `Path.is_dir` raises, of what lies in a folder that must not be entered
from pathlib import Path

import numpy as np
from PIL import Image

from command_line.errors import InputError
from command_line.paths import printable
from data_sources.fingerprint import fingerprint
from data_sources.folders import Part, check_together, left_out_line, own_folders, scan
from data_sources.image_set import ImageSet, Source, shuffled, split
from data_sources.images import read_image
from data_sources.pixels import Whites
from data_sources.survey import survey, unreadable

TAKES = "imagefolder takes a folder with train/<class>/ and test/<class>/"
VALIDATION_NAMES = ("val", "validation", "valid")
BAD_NAMED = 3  # images that were skipped and are named


@dataclass(frozen=True)
class FolderOptions:
    """What a person can say of folders of images; the settings of the same names tell more."""

    test_fraction: float = 0.0
    validation_folder: bool = True
    skip_bad_images: bool = False


@dataclass(frozen=True)
class Layout:
    """The parts of a folder, checked against each other; without `test`, a share of `train` is to be the test."""

    train: Part
    test: Part | None
    validation: Part | None
    note: str = ""

    def named(self) -> dict[str, Part]:
        """The parts that there are, by their names."""
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: part for name, part in parts.items() if part is not None}


def read_folders(folder: Path, options: FolderOptions) -> Source:
    """The images of a folder; no pixel is read but of kinds for which that must be, and where bad ones are skipped.

    Raises:
        InputError: the folders do not fit, and what to do.
    """
    layout = find_parts(folder, options)
    parts, classes = layout.named(), layout.train.classes
    fingerprints = {name: fingerprint(part.labels, len(classes), part.files()) for name, part in parts.items()}
    whites, kinds = survey([path for part in parts.values() for path in part.paths])
    notes = [layout.note, kinds, left_out_line(sum((part.left_out for part in parts.values()), Counter()))]
    if options.skip_bad_images:
        parts, skipped = _without_bad(parts, whites)
        notes.append(skipped)
    sets = {name: image_set(part, whites) for name, part in parts.items()}
    train, test = _train_and_test(sets, options, classes)
    return Source(train, test, classes, sets.get("validation"), whites, tuple(filter(None, notes)), fingerprints)


def counts(folder: Path, options: FolderOptions) -> tuple[int, int]:
    """Of a folder of images, the number of classes and of training images, without reading one."""
    layout = find_parts(folder, options)
    train = len(layout.train.paths)
    if layout.test is None:
        train = len(split(image_set(layout.train), options.test_fraction, "test_fraction")[0])
    return len(layout.train.classes), train


def find_parts(folder: Path, options: FolderOptions) -> Layout:
    """The parts of a folder of images, each scanned.

    Raises:
        InputError: naming what is missing or does not fit, and what to do.
    """
    inner = folder / "train"
    if isdir(inner / "train") and isdir(inner / "test"):
        raise InputError(f"data_dir: {inner} has folders train and test itself; take --data_dir {inner}")
    if not isdir(inner):
        if options.test_fraction == 0.0 or isdir(folder / "test") or not isdir(folder):
            raise InputError(_no_train(folder))
        train, test, validation = folder, None, None
    else:
        if hint := _if_a_class(folder, "train"):
            raise InputError(f"data_dir: {inner} is taken for the training images, and has no class in it{hint}")
        train, (test, validation) = inner, _test_and_validation(folder, options)
    layout = Layout(
        scan(train),
        scan(test) if test else None,
        scan(validation) if validation and options.validation_folder else None,
        f"{test.name} is taken for the test, since there is no folder test" if test and test.name != "test" else "",
    )
    for part in layout.named().values():
        check_together(layout.train, part)
    return layout


def _test_and_validation(folder: Path, options: FolderOptions) -> tuple[Path | None, Path | None]:
    """The folders of the test, None where it is split off, and of the validation, where there is one."""
    test = folder / "test"
    validation = next((folder / name for name in VALIDATION_NAMES if isdir(folder / name)), None)
    if options.test_fraction > 0.0:
        if isdir(test):
            raise InputError(f"test_fraction: {test} holds the test images; take test_fraction 0, or another data_dir")
        return None, validation
    if isdir(test):
        return test, validation
    if validation is None:
        raise InputError(
            f"data_dir: there is no folder {test}; {TAKES}, or --test_fraction 0.2 to hold back a fifth of train"
        )
    return validation, None


def image_set(part: Part, whites: Whites | None = None) -> ImageSet:
    """The images of a part, each read when it is asked for."""
    return ImageSet(partial(_read, part.paths, whites or {}), part.labels, partial(_name, part.folder, part.paths))


def every_image(folder: Path, whites: Whites) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of `folder`/test, or where there are no parts, of the folder; and the names of their classes.

    Raises:
        InputError: there are none, and where they might be.
    """
    if not isdir(folder):
        raise InputError(f"data_dir: there is no folder {folder}")
    test = folder / "test"
    if not isdir(test) and isdir(folder / "train"):
        hint = _if_a_class(folder, "test")
        raise InputError(
            f"data_dir: there is no folder {test} beside train; take a data_dir with the images of a test{hint}"
        )
    part = scan(test if isdir(test) else folder, fewest=1)
    if not part.paths:
        raise InputError(f"data_dir: {part.folder} holds no image")
    return image_set(part, whites), part.classes


# these are functions of the module, and not closures, so that a loader's worker can be sent them on every system
def _read(paths: list[str], whites: Whites, i: int) -> Image.Image:
    return read_image(paths[i], whites)


def _name(folder: Path, paths: list[str], i: int) -> str:
    """Such as `test/cat/1.jpg`."""
    return printable(os.path.relpath(paths[i], folder.parent).replace(os.sep, "/"))


def _train_and_test(
    sets: dict[str, ImageSet], options: FolderOptions, classes: tuple[str, ...]
) -> tuple[ImageSet, ImageSet]:
    if "test" not in sets:
        train, test = split(sets["train"], options.test_fraction, "test_fraction", classes)
        assert test is not None
        return train, test
    # the files lie class by class, and CIFAR-10's do not: a network tested in training mode would see single classes
    return sets["train"], sets["test"].part(shuffled(sets["test"]))


def _without_bad(parts: dict[str, Part], whites: Whites) -> tuple[dict[str, Part], str]:
    """The parts without the images that cannot be read, and a line on those."""
    kept: dict[str, Part] = {}
    complaints: list[str] = []
    for name, part in parts.items():
        bad = unreadable(part.paths, whites)
        rest = np.setdiff1d(np.arange(len(part.paths)), [number for number, _ in bad])
        kept[name] = Part(part.folder, part.classes, [part.paths[i] for i in rest], part.labels[rest], part.left_out)
        check_together(kept[name], kept[name])
        complaints += [why.removeprefix("data_dir: ") for _, why in bad]
    named = "; ".join(complaints[:BAD_NAMED]) + ("; …" if len(complaints) > BAD_NAMED else "")
    return kept, f"{len(complaints):,} images skipped: {named}" if complaints else ""


def _no_train(folder: Path) -> str:
    """What is there in place of train/, and what to do about it."""
    missing = f"data_dir: there is no folder {folder / 'train'}; {TAKES}"
    folders = _folders_in(folder) if isdir(folder) else []
    for name in folders:
        if isdir(folder / name / "train"):
            return f"{missing}; there is {folder / name / 'train'}: take --data_dir {folder / name}"
    classes = _not_parts(folders)
    if len(classes) > 1 and "test" not in folders:
        named = ", ".join(classes[:3])
        return f"{missing}; are {named} the classes? Then --test_fraction 0.2 holds back a fifth of each for the test"
    return missing


def _if_a_class(folder: Path, part: str) -> str:
    """What to do if the folder train is a class, as where it lies beside others and has no folder in it; else empty."""
    beside = _not_parts(_folders_in(folder))
    if not beside or _folders_in(folder / "train"):
        return ""
    named, inside = ", ".join(beside[:3]), folder / part
    return f"; if it is a class itself, beside {named}, move all classes into {inside}: {inside / 'train'}"


def _not_parts(folders: list[str]) -> list[str]:
    return [name for name in folders if name not in ("train", "test", *VALIDATION_NAMES)]


def _folders_in(folder: Path) -> list[str]:
    try:
        return own_folders(folder)
    except OSError as error:
        raise InputError(f"data_dir: {folder} cannot be read ({error.strerror})") from error
