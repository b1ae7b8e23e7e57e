"""The data sets, read from what lies on the disk."""

import dataclasses
import errno
import hashlib
import http.client
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIDE, TEST, TRAIN, write_images
from loader_tools import gathered
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from command_line.errors import InputError
from data_preprocessing import CROP_PADDING, class_count, load_data
from data_sources.normalisation import CIFAR10_STATISTICS
from user_input import UserInput

CPU = torch.device("cpu")


def test_the_digits_are_split_by_class_without_overlap() -> None:
    data = load_data(UserInput(dataset="digits", image_size=8), CPU)
    inner = slice(CROP_PADDING, -CROP_PADDING)
    train, test = data.train.pixels[:, inner, inner], data.test.pixels
    assert len(train) + len(test) == 1797
    expected = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    together = np.concatenate([train[..., 0].numpy(), test[..., 0].numpy()]).reshape(1797, -1)
    order = [np.lexsort(images.T) for images in (together, expected.reshape(1797, -1))]
    np.testing.assert_array_equal(together[order[0]], expected.reshape(1797, -1)[order[1]])
    counts = torch.bincount(data.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_image_folders_are_read_as_they_are(photos: Path, small: UserInput) -> None:
    data = load_data(small, CPU)
    assert data.classes == ("nought", "one", "two")
    assert class_count(small) == 3
    assert (data.train.images, data.test.images) == (3 * TRAIN // 8 * 8, 3 * TEST)
    images, labels = gathered(data.test)
    files = sorted((photos / "test").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    order = [int(np.flatnonzero((pixels == image).all((1, 2, 3)))[0]) for image in data.test.pixels.numpy()]
    assert sorted(order) == list(range(3 * TEST)) != order  # each once, and the classes mixed
    assert labels.tolist() == [place // TEST for place in order]
    assert len(images) == 3 * TEST


def test_other_sizes_and_modes_are_fitted(tmp_path: Path, small: UserInput) -> None:
    folder = write_images(tmp_path / "odd")
    Image.new("L", (30, 20), 200).save(folder / "test" / "one" / "grey.png")
    data = load_data(dataclasses.replace(small, data_dir=str(folder)), CPU)
    assert data.test.pixels.shape == (3 * TEST + 1, SIDE, SIDE, 3)
    assert (data.test.pixels == 200).all((1, 2, 3)).sum() == 1


def test_folders_that_do_not_fit_are_refused(tmp_path: Path, small: UserInput) -> None:
    args = dataclasses.replace(small, data_dir=str(tmp_path / "folder"))
    with pytest.raises(InputError, match="data_dir: there is no folder .*train; imagefolder takes"):
        load_data(args, CPU)
    folder = write_images(tmp_path / "folder")
    shutil.copytree(folder / "train" / "one", folder / "train" / "three")
    with pytest.raises(InputError, match=r"classes in .* differ \(three is in one only\)"):
        load_data(args, CPU)
    (folder / "test" / "three").mkdir()
    with pytest.raises(InputError, match=r"class three has no image in .*test; put images into its folder"):
        load_data(args, CPU)
    shutil.rmtree(folder / "test")
    with pytest.raises(InputError, match="data_dir: there is no folder .*test"):
        load_data(args, CPU)


def fake_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive in CIFAR-10's format with ten images, and torchvision's checksums set to its own."""
    rng = np.random.default_rng(0)
    sums = {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:

        def add(name: str, content: object) -> None:
            data = pickle.dumps(content)
            sums[name] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for name, _ in CIFAR10.train_list + CIFAR10.test_list:
            add(name, {"data": rng.integers(0, 256, (2, 3072), np.uint8), "labels": [0, 1]})
        add(CIFAR10.meta["filename"], {"label_names": [f"class {i}" for i in range(10)]})
    for kind in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, kind, [[name, sums[name]] for name, _ in getattr(CIFAR10, kind)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[CIFAR10.meta["filename"]]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(buffer.getvalue()).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing-listens-here")
    folder.mkdir()
    (folder / CIFAR10.filename).write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_cifar10_is_used_offline_as_archive_and_as_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    fake_cifar(folder, monkeypatch)
    args = UserInput(data_dir=str(folder), batch_size=4)
    from_archive = load_data(args, CPU)
    (folder / CIFAR10.filename).unlink()
    from_folder = load_data(args, CPU)
    assert torch.equal(from_archive.train.pixels, from_folder.train.pixels)
    assert from_folder.test.pixels.shape == (2, 32, 32, 3)
    assert len(from_folder.train.pixels) == 10
    assert (from_folder.normalisation.mean, from_folder.normalisation.std) == CIFAR10_STATISTICS
    assert from_folder.classes[3] == "class 3"


def test_without_archive_and_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    content = fake_cifar(folder, monkeypatch)
    args = UserInput(data_dir=str(folder))
    (folder / CIFAR10.filename).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz is truncated or damaged.*--dataset digits"):
        load_data(args, CPU)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"is not there.*put cifar-10-python.tar.gz from http.* into .*data"):
        load_data(args, CPU)
    assert not folder.exists()


def test_a_failed_download_takes_away_its_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"

    def fail(*given: object, **options: object) -> None:
        """End in the middle, when somebody has put a file beside."""
        (folder / CIFAR10.base_folder).mkdir(parents=True)
        for name in (CIFAR10.filename, f"{CIFAR10.base_folder}/data_batch_1", "others.txt"):
            (folder / name).write_text("")
        raise http.client.IncompleteRead(b"", 9)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(InputError, match="could not be downloaded"):
        load_data(UserInput(data_dir=str(folder)), CPU)
    assert [path.name for path in folder.iterdir()] == ["others.txt"]


@pytest.mark.parametrize(
    ("error", "archive", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            True,
            "is sound, but cannot be unpacked into .*No space left",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            True,
            "is sound, but cannot be unpacked .*Permission denied",
        ),
        (OSError(errno.EROFS, "Read-only file system"), False, "cifar10 cannot be downloaded into .*Read-only"),
        (http.client.InvalidURL("nonnumeric port"), False, "could not be downloaded .InvalidURL: nonnumeric port"),
        (http.client.IncompleteRead(b"", 9), False, "could not be downloaded .IncompleteRead"),
    ],
)
def test_what_failed_is_told_in_one_line(
    error: Exception, archive: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **options: object) -> None:
        raise error

    folder = tmp_path / "data"
    fake_cifar(folder, monkeypatch)
    if not archive:
        (folder / CIFAR10.filename).unlink()
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(InputError, match=says) as refused:
        load_data(UserInput(data_dir=str(folder)), CPU)
    assert "truncated" not in str(refused.value)
