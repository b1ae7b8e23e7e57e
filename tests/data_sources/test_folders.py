"""Folders of images as they come: what is left out and counted, what is taken for what, what is refused and how."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line.errors import InputError
from data_sources.folders import scan
from data_sources.image_set import Source
from data_sources.layout import FolderOptions, counts, every_image, read_folders

Build = Callable[[Path], object]


def images(folder: Path, *names: str, shade: int = 0) -> None:
    """Write tiny pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names or ("0.png", "1.png")):
        Image.new("L", (2, 2), shade + number).save(folder / name, format="PNG")


def data_set(folder: Path, *parts: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`<part>/<class>/0.png` and 1.png for each part, train and test if none is named."""
    for number, part in enumerate(parts or ("train", "test")):
        for name in classes:
            images(folder / part / name, shade=50 * number)
    return folder


def link(folder: Path, target: Path) -> None:
    folder.symlink_to(target, target_is_directory=True)


# What stands beside two classes of two images in train and test, and what is said of it
LEFT_OUT: dict[str, tuple[Build, str]] = {
    "notebook": (lambda f: images(f / "train" / ".ipynb_checkpoints"), "1 hidden or system"),
    "notebook in a class": (lambda f: images(f / "train" / "cat" / ".ipynb_checkpoints"), "1 hidden or system"),
    "macOS archive": (lambda f: images(f / "test" / "__MACOSX" / "cat"), "1 hidden or system"),
    "NAS": (lambda f: images(f / "train" / "dog" / "@eaDir"), "1 hidden or system"),
    "macOS forks": (lambda f: (f / "train" / "cat" / "._0.png").write_bytes(b"\0"), "1 hidden or system"),
    "Windows": (lambda f: (f / "train" / "cat" / "Thumbs.db").write_bytes(b"\0"), "1 hidden or system"),
    "thumbnails": (lambda f: images(f / "train" / "cat" / "Thumbnails"), "1 folders of thumbnails"),
    "link to itself": (lambda f: link(f / "train" / "cat" / "me", f / "train" / "cat"), "1 links to folders"),
    "link to the part": (lambda f: link(f / "train" / "cat" / "all", f / "train"), "1 links to folders"),
    "link to a class": (lambda f: link(f / "train" / "cat" / "dogs", f / "train" / "dog"), "1 links to folders"),
    "text": (lambda f: (f / "train" / "cat" / "notes.txt").write_text("x"), "1 .txt files"),
    "AVIF": (lambda f: (f / "train" / "cat" / "a.avif").write_bytes(b"x"), "1 AVIF files (not read here; convert"),
    "HEIC": (lambda f: (f / "train" / "cat" / "a.HEIC").write_bytes(b"x"), "1 HEIC files (not read here; convert"),
    "no ending": (lambda f: (f / "train" / "cat" / "README").write_text("hello"), "1 files without an ending"),
    "no ending, AVIF": (lambda f: (f / "test" / "cat" / "a").write_bytes(b"\0\0\0 ftypavif"), "1 AVIF files (not read"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_image_of_ones_own_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    build, says = LEFT_OUT[name]
    build(data_set(tmp_path))
    source = read_folders(tmp_path, FolderOptions())
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.test)) == (4, 4)
    (line,) = (note for note in source.notes if note.startswith("left out: "))
    assert says in line


TAKEN = {
    "GIF": lambda f: Image.new("L", (2, 2)).save(f / "train" / "cat" / "a.gif"),
    "JFIF": lambda f: Image.new("L", (2, 2)).save(f / "train" / "cat" / "a.jfif", "JPEG"),
    "upper case": lambda f: images(f / "train" / "cat", "A.PNG"),
    "no ending": lambda f: images(f / "train" / "cat", "a"),
    "folder in a class": lambda f: images(f / "train" / "cat" / "more", "a.png"),
    "linked folder": lambda f: (images(f / "elsewhere", "a.png"), link(f / "train" / "cat" / "l", f / "elsewhere")),
    "linked file": lambda f: (images(f / "o", "a.png"), (f / "train" / "cat" / "l.png").symlink_to(f / "o" / "a.png")),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_image_is_taken_wherever_it_lies(name: str, tmp_path: Path) -> None:
    TAKEN[name](data_set(tmp_path))
    source = read_folders(tmp_path, FolderOptions())
    assert len(source.train) == 5
    assert not [note for note in source.notes if note.startswith("left out")]
    assert [source.train.read(i).size for i in range(5)] == [(2, 2)] * 5


def test_a_link_that_goes_round_adds_nothing(tmp_path: Path) -> None:
    data_set(tmp_path)
    link(tmp_path / "train" / "cat" / "up", tmp_path)
    assert len(scan(tmp_path / "train").paths) == 4 + 4  # those of the test, once; no image twice
    assert len(set(map(os.path.realpath, scan(tmp_path / "train").paths))) == 8


def shades(source: Source) -> dict[str, set[int]]:
    """Which pictures are in which part, by their grey."""
    parts = {"train": source.train, "test": source.test, "validation": source.validation}
    return {name: {part.read(i).getpixel((0, 0))[0] for i in range(len(part))} for name, part in parts.items() if part}


def test_val_is_taken_for_the_test_where_there_is_none_and_said(tmp_path: Path) -> None:
    for name in ("val", "validation", "valid"):
        folder = data_set(tmp_path / name, "train", name)
        source = read_folders(folder, FolderOptions())
        assert shades(source) == {"train": {0, 1}, "test": {50, 51}}
        assert f"{name} is taken for the test, since there is no folder test" in source.notes


def test_val_beside_test_has_the_validation_images(tmp_path: Path) -> None:
    data_set(tmp_path, "train", "test", "val")
    own = read_folders(tmp_path, FolderOptions())
    assert shades(own) == {"train": {0, 1}, "test": {50, 51}, "validation": {100, 101}}
    assert own.fingerprint.keys() == {"train", "test", "validation"}
    without = read_folders(tmp_path, FolderOptions(validation_folder=False))
    assert shades(without).keys() == {"train", "test"}


@pytest.mark.parametrize("flat", [True, False])
def test_a_test_can_be_split_off(tmp_path: Path, flat: bool) -> None:
    folder = tmp_path if flat else tmp_path / "train"
    for label, name in enumerate(("cat", "dog")):
        images(folder / name, *(f"{i}.png" for i in range(10)), shade=100 * label)
    options = FolderOptions(test_fraction=0.2)
    source = read_folders(tmp_path, options)
    parts = shades(source)
    assert not parts["train"] & parts["test"]
    assert np.bincount(source.test.labels).tolist() == [2, 2]
    assert np.bincount(source.train.labels).tolist() == [8, 8]
    assert counts(tmp_path, options) == (2, 16)
    assert shades(read_folders(tmp_path, options)) == parts


# Folders that do not fit, with the settings, and the words that say what to do
REFUSED: dict[str, tuple[Build, FolderOptions, str]] = {
    "flat": (
        lambda f: [images(f / name) for name in ("cat", "dog")],
        FolderOptions(),
        r"no folder .*train;.*are cat, dog the classes\? Then --test_fraction 0.2 holds back a fifth",
    ),
    "no test": (
        lambda f: data_set(f, "train"),
        FolderOptions(),
        r"no folder .*test;.*or --test_fraction 0.2 to hold back a fifth of train",
    ),
    "one deeper": (
        lambda f: data_set(f / "archive"),
        FolderOptions(),
        r"there is .*archive/train: take --data_dir .*archive$",
    ),
    "train in train": (
        lambda f: data_set(f / "train", "train", "test"),
        FolderOptions(),
        r"train has folders train and test itself; take --data_dir .*train$",
    ),
    "train in train, test in test": (
        lambda f: [data_set(f / part, part) for part in ("train", "test")],
        FolderOptions(),
        r"has one class only, train; .*are its classes cat, dog\? Move the folders in it up to .*train$",
    ),
    "images": (
        lambda f: [data_set(f / part, "images") for part in ("train", "test")],
        FolderOptions(),
        r"has one class only, images; .*are its classes cat, dog\?",
    ),
    "one class": (
        lambda f: data_set(f, classes=("cat",)),
        FolderOptions(),
        r"train has one class only, cat; there must be two$",
    ),
    "no class folders": (
        lambda f: [images(f / part) for part in ("train", "test")],
        FolderOptions(),
        r"train holds images themselves; it takes a folder for each class",
    ),
    "empty": (
        lambda f: [(f / part).mkdir() for part in ("train", "test")],
        FolderOptions(),
        r"train is empty; it takes a folder for each class",
    ),
    "class in one part": (
        lambda f: [data_set(f), images(f / "train" / "bee")],
        FolderOptions(),
        r"differ \(bee is in one only\); each has to have its folder, and images, in both",
    ),
    "class without an image": (
        lambda f: [data_set(f), images(f / "train" / "bee"), (f / "test" / "bee").mkdir()],
        FolderOptions(),
        r"class bee has no image in .*test; put images into its folder, or take it out of every part",
    ),
    "class of AVIF": (
        lambda f: [data_set(f), images(f / "train" / "bee"), images(f / "test" / "bee", "a.avif", "b.avif")],
        FolderOptions(),
        r"class bee has no image in .*test; left out were 2 AVIF files .not read here; convert them to PNG.; put",
    ),
    "test and test_fraction": (
        lambda f: data_set(f),
        FolderOptions(test_fraction=0.2),
        r"^test_fraction: .*test holds the test images; take test_fraction 0",
    ),
    "one image and a split": (
        lambda f: [images(f / "cat", "a.png"), images(f / "dog")],
        FolderOptions(test_fraction=0.5),
        r"^test_fraction: class cat has one image, which cannot be on both sides of a split",
    ),
    "class called train": (
        lambda f: [images(f / name) for name in ("bus", "ship", "train")],
        FolderOptions(test_fraction=0.2),
        r"/train is taken for the training images, and has no class in it; if it is a class itself, beside bus, ship, "
        r"move all classes into .*/train: .*/train/train$",
    ),
    "nothing there": (lambda f: None, FolderOptions(test_fraction=0.2), r"is empty; it takes a folder for each class"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_do_not_fit_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    build, options, says = REFUSED[name]
    build(tmp_path)
    with pytest.raises(InputError, match=says) as refused:
        read_folders(tmp_path, options)
    assert "\n" not in str(refused.value)


def private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody list a folder, or ask for what lies in it; root could, whatever its mode."""

    def refuse(usual: Callable, is_private: Callable[[str], bool]) -> Callable:
        def asked(path: object, *given: object, **options: object) -> object:
            if is_private(str(path)):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return usual(path, *given, **options)

        return asked

    monkeypatch.setattr(os, "stat", refuse(os.stat, lambda path: path.startswith(f"{folder}{os.sep}")))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir, lambda path: path == str(folder)))


def test_a_private_folder_beside_the_classes_ends_in_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog", "mine"):
        images(tmp_path / name)
    private(tmp_path / "mine", monkeypatch)
    with pytest.raises(InputError, match=r"no folder .*train;.*are cat, dog, mine the classes\?"):
        read_folders(tmp_path, FolderOptions())
    with pytest.raises(InputError, match=rf"^data_dir: {tmp_path} cannot be read .*mine\)$"):
        read_folders(tmp_path, FolderOptions(test_fraction=0.5))


def test_a_private_data_dir_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(tmp_path)
    private(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=f"^data_dir: {tmp_path} cannot be read .{os.strerror(errno.EACCES)}"):
        read_folders(tmp_path, FolderOptions())


def test_a_class_called_train_can_be_trained_and_tested_on_where_it_lies_deeper(tmp_path: Path) -> None:
    names = ("bus", "train")
    for name in names:
        images(tmp_path / name)
    with pytest.raises(InputError, match=r"if it is a class itself, beside bus, move all classes into .*/test: "):
        every_image(tmp_path, {})
    data_set(tmp_path / "deeper", "train", "test", classes=names)
    assert read_folders(tmp_path / "deeper", FolderOptions()).classes == names
    assert every_image(tmp_path / "deeper", {})[1] == names


def test_one_class_is_enough_to_be_tested_on(tmp_path: Path) -> None:
    images(tmp_path / "cat")
    found, classes = every_image(tmp_path, {})
    assert (len(found), classes) == (2, ("cat",))
    with pytest.raises(InputError, match="has one class only, cat; there must be two"):
        scan(tmp_path)


def test_names_are_shown_in_one_line_and_in_letters(tmp_path: Path) -> None:
    names = [b"two\nlines", b"caf\xe9", "猫".encode(), b"$x$"]
    for part in (b"train", b"test"):
        for name in names:
            folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), part, name)))
            images(folder)
    source = read_folders(tmp_path, FolderOptions())
    assert set(source.classes) == {r"two\nlines", "café", "猫", "$x$"}
    assert all(len(name.encode().splitlines()) == 1 for name in source.classes)


def test_a_files_name_can_stand_in_the_log(tmp_path: Path) -> None:
    data_set(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path / "train" / "cat") + b"/caf\xe9\n.png")).write_text("no image")
    *_, note = read_folders(tmp_path, FolderOptions(skip_bad_images=True)).notes
    assert r"café\n.png is no readable image" in note.encode().decode()
    assert len(note.splitlines()) == 1


def test_a_thousand_classes(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    for name in (f"{number:04d}" for number in range(1000)):
        (tmp_path / "train" / name).mkdir(parents=True)
        os.link(tmp_path / "a.png", tmp_path / "train" / name / "a.png")
    part = scan(tmp_path / "train")
    assert len(part.classes) == len(part.paths) == 1000
    assert part.labels.tolist() == list(range(1000))


def test_bad_images_are_skipped_at_the_users_wish_and_counted(tmp_path: Path) -> None:
    data_set(tmp_path)
    for part, name in (("train", "cat"), ("test", "dog")):
        (tmp_path / part / name / "bad.png").write_text("no image")
    source = read_folders(tmp_path, FolderOptions(skip_bad_images=True))
    assert shades(source) == {"train": {0, 1}, "test": {50, 51}}
    (line,) = (note for note in source.notes if "skipped" in note)
    assert re.match(r"2 images skipped: \S*cat/bad.png is no readable image .*; \S*dog/bad.png is no", line)
    for image in (tmp_path / "test" / "dog").iterdir():
        image.write_text("no image")
    with pytest.raises(InputError, match=r"class dog has no image in .*test"):
        read_folders(tmp_path, FolderOptions(skip_bad_images=True))
