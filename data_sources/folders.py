"""Folders of images by class, as they come: what is no image of a person's own is left out, and counted."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from command_line.errors import InputError
from command_line.paths import printable
from data_sources.formats import ENDINGS, IMAGE_FORMATS, UNREAD_ENDINGS, format_of

SYSTEM = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"),
    *("thumbs.db", "desktop.ini", "icon\r"),
}
THUMBNAILS = {"thumbs", "thumbnails", "thumbnail", "_thumbs", "_thumbnails"}
HIDDEN = "hidden or system files and folders"


@dataclass(frozen=True)
class Part:
    """The image files of one part of a data set, such as `train`, class by class; n of them."""

    folder: Path
    classes: tuple[str, ...]  # as they are shown
    paths: list[str]
    labels: np.ndarray  # (n,) int64
    left_out: Counter[str]

    def counts(self) -> np.ndarray:
        """Images of each class (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def files(self) -> Iterator[tuple[str, int]]:
        """Each file's name within the part, and its size in bytes."""
        for path in self.paths:
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1  # of what is no file any more, which is refused when it is read
            yield path[len(str(self.folder)) + 1 :].replace(os.sep, "/"), size


def own_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder that are a person's own, sorted; raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not hidden(entry.name) and is_folder(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is one that systems and programs make."""
    return name.startswith(".") or name.lower() in SYSTEM


def scan(folder: Path, fewest: int = 2) -> Part:
    """All the images of the classes that have a folder each in `folder`.

    Raises:
        InputError: it cannot be read, or holds no class, or less than the `fewest` of them, 1 or 2, that do.
    """
    paths: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    try:
        names = own_folders(folder)
        with os.scandir(folder) as entries:
            left_out[HIDDEN] += sum(hidden(entry.name) for entry in entries)
        roots = {_identity(folder), *(_identity(folder / name) for name in names)}
        for label, name in enumerate(names):
            found = sorted(_images(str(folder / name), set(roots), left_out))
            paths += [os.path.join(*pair) for pair in found]
            labels += [label] * len(found)
    except OSError as error:
        raise InputError(f"data_dir: {folder} cannot be read ({error.strerror}: {error.filename})") from error
    classes = tuple(map(printable, names))
    part = Part(folder, classes, paths, np.asarray(labels, np.int64), left_out)
    _check_classes(part, fewest)
    return part


def images_below(folder: Path) -> tuple[list[str], Counter[str]]:
    """All the images in a folder and those below it, sorted, and what was left out; raises OSError."""
    left_out: Counter[str] = Counter()
    found = sorted(_images(str(folder), {_identity(folder)}, left_out))
    return [os.path.join(*pair) for pair in found], left_out


def _images(top: str, seen: set[tuple[int, int]], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Folder and name of each image file from `top` downwards; a folder of those `seen` is not entered again."""
    folders = [top]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if hidden(entry.name):
                    left_out[HIDDEN] += 1
                elif not is_folder(entry):
                    kind = _left_out_as(entry.path, entry.name)
                    if kind is None:
                        yield folder, entry.name
                    else:
                        left_out[kind] += 1
                elif entry.name.lower() in THUMBNAILS:
                    left_out["folders of thumbnails"] += 1
                elif (identity := _identity(entry.path)) in seen:
                    left_out["links to folders that are read already"] += 1
                else:
                    seen.add(identity)
                    folders.append(entry.path)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _left_out_as(path: str, name: str) -> str | None:
    """What a file is counted as that is left out; None for an image, which it is by its ending, or lacking one."""
    ending = os.path.splitext(name)[1].lower()
    if ending in ENDINGS:
        return None
    if ending in UNREAD_ENDINGS:
        return f"{UNREAD_ENDINGS[ending]} files (not read here; convert them to PNG)"
    if ending:
        return f"{printable(ending)} files"
    kind = format_of(path) if os.path.isfile(path) else None
    if kind in IMAGE_FORMATS:
        return None
    return "files without an ending" if kind is None else f"{kind} files (not read here; convert them to PNG)"


def left_out_line(left_out: Counter[str]) -> str:
    """`left out: 3 .txt files, 2 hidden or …`; empty where nothing was."""
    words = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common() if count)
    return f"left out: {words}" if words else ""


# ----------------------------------------------------------------------------------------- what does not fit together


def _check_classes(part: Part, fewest: int) -> None:
    """Refuse a part with less than the `fewest` classes, naming the folder that was probably meant."""
    folder, classes = part.folder, part.classes
    if not classes:
        here = any(path.suffix.lower() in ENDINGS for path in folder.iterdir() if not hidden(path.name))
        what = "holds images themselves" if here else "is empty"
        raise InputError(f"data_dir: {folder} {what}; it takes a folder for each class, with the images in it")
    if len(set(classes)) < len(classes):
        raise InputError(f"data_dir: {folder} has two folders whose names are both shown as {_twice(classes)}")
    if len(classes) == 1 < fewest:
        inside = own_folders(folder / own_folders(folder)[0])
        hint = f"; are its classes {', '.join(map(printable, inside[:3]))}? Move the folders in it up to {folder}"
        raise InputError(
            f"data_dir: {folder} has one class only, {classes[0]}; there must be two{hint if len(inside) > 1 else ''}"
        )


def _twice(names: tuple[str, ...]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def check_together(train: Part, other: Part) -> None:
    """Refuse two parts that have not the same classes, or a class without an image.

    Raises:
        InputError: naming the class, and what to do.
    """
    if odd := sorted(set(train.classes) ^ set(other.classes)):
        raise InputError(
            f"data_dir: the classes in {train.folder} and {other.folder} differ ({', '.join(odd[:5])} is in one only); "
            "each has to have its folder, and images, in both"
        )
    for part in (train, other):
        if len(empty := np.flatnonzero(part.counts() == 0)):
            raise InputError(_no_image(part, part.classes[empty[0]], len(empty) - 1))


def _no_image(part: Part, name: str, more: int) -> str:
    others = f", and {more} other class{'es' if more > 1 else ''} neither" if more else ""
    unread_files = [kind for kind in part.left_out if "not read here" in kind]
    why = f"; left out were {part.left_out[unread_files[0]]} {unread_files[0]}" if unread_files else ""
    return (
        f"data_dir: class {name} has no image in {part.folder}{others}{why}; put images into its folder, or take it "
        "out of every part"
    )
