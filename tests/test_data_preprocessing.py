import dataclasses
import hashlib
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIDE, TEST, TRAIN, write_images
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10

from command_line.errors import InputError
from data_preprocessing import CROP_PADDING, AugmentedLoader, class_count, crop_and_flip, load_data, training_count
from data_sources.batches import evaluation_batch, mix
from data_sources.in_memory import PlainLoader
from data_sources.normalisation import CIFAR10_STATISTICS, Normalisation, measure_normalisation
from data_sources.streaming import StreamLoader, _Stream
from user_input import UserInput

CPU = torch.device("cpu")
PLAIN = Normalisation((0.0, 0.0, 0.0), (1 / 255,) * 3)  # leaves the pixels' values 0..255


def numbered(count: int, side: int = 6) -> PlainLoader:
    """Images of one value each, 1..count, so that a zero is padding and a value tells the image."""
    pixels = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3).contiguous()
    return PlainLoader(pixels, torch.arange(count), batch_size=4, normalisation=PLAIN)


def gathered(loader, epoch: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader.batches(epoch, first), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_crop_and_flip_is_what_slicing_and_reversing_give() -> None:
    pixels = torch.randint(256, (5, 6 + 2 * CROP_PADDING, 6 + 2 * CROP_PADDING, 3), dtype=torch.uint8)
    index, top, left = torch.tensor([4, 0, 0, 2]), torch.tensor([0, 8, 3, 5]), torch.tensor([8, 0, 1, 2])
    flip = torch.tensor([False, True, False, True])
    result = crop_and_flip(pixels, index, top, left, flip).numpy()
    for row in range(4):
        y, x = int(top[row]), int(left[row])
        expected = pixels.numpy()[int(index[row]), y : y + 6, x : x + 6]
        np.testing.assert_array_equal(result[row], expected[:, ::-1] if flip[row] else expected)


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    loader = AugmentedLoader.of(numbered(23), seed=1, flip=True)
    once, again = gathered(loader, epoch=3), gathered(loader, epoch=3)
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert not torch.equal(once[1], gathered(loader, epoch=4)[1])
    assert not torch.equal(once[1], gathered(dataclasses.replace(loader, seed=2), epoch=3)[1])


def test_an_epoch_goes_on_from_any_batch() -> None:
    loader = AugmentedLoader.of(numbered(23), seed=1, flip=True)
    images, labels = gathered(loader, epoch=3)
    rest_images, rest_labels = gathered(loader, epoch=3, first=2)
    assert torch.equal(images[8:], rest_images)
    assert torch.equal(labels[8:], rest_labels)


def test_training_batches_are_full_and_no_image_comes_twice() -> None:
    loader = AugmentedLoader.of(numbered(23), seed=0, flip=True)
    images, labels = gathered(loader, epoch=1)
    assert (len(loader), loader.images, len(images)) == (5, 20, 20)
    assert len(set(labels.tolist())) == 20
    assert torch.equal(images.amax((1, 2, 3)), labels + 1.0)  # a crop keeps at least a corner of its own image


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    loader = AugmentedLoader.of(dataclasses.replace(numbered(3), batch_size=128), seed=0, flip=True)
    assert [len(labels) for _, labels in loader.batches()] == [3]


def test_every_image_has_its_own_draw() -> None:
    column = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(500, 32, 32, 3)
    row = torch.arange(32, dtype=torch.uint8).view(1, 32, 1, 1).expand(500, 32, 32, 3)
    pixels = torch.stack([column[..., 0] + 1, row[..., 0] + 1, column[..., 0] + 1], dim=-1)
    loader = AugmentedLoader.of(PlainLoader(pixels, torch.arange(500), 500, PLAIN), seed=0, flip=True)
    images, _ = gathered(loader)
    centre = images[:, :2, 16, 16]  # of a picture of its own coordinates: where the crop began, and if it was flipped
    step = images[:, 0, 16, 17] - images[:, 0, 16, 16]
    assert set(step.tolist()) == {1.0, -1.0}
    assert 200 < (step < 0).sum() < 300
    assert set(centre[:, 1].tolist()) == {17.0 + shift for shift in range(-4, 5)}
    assert len({tuple(pair) for pair in torch.cat([centre, step[:, None]], 1).tolist()}) > 120  # of 162


def test_digits_are_not_flipped() -> None:
    data = load_data(UserInput(dataset="digits", image_size=8), CPU)
    assert isinstance(data.train, AugmentedLoader)
    assert not data.train.flip


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


def test_normalisation_is_that_of_all_pixels_together() -> None:
    images = torch.randint(256, (9, 5, 5, 3), dtype=torch.uint8)
    measured = measure_normalisation(images)
    values = images.numpy() / 255.0
    np.testing.assert_allclose(measured.mean, values.mean((0, 1, 2)))
    np.testing.assert_allclose(measured.std, values.std((0, 1, 2)))
    normalised = measured.apply(images)
    expected = (values - values.mean((0, 1, 2))) / values.std((0, 1, 2))
    np.testing.assert_allclose(normalised.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(measured.undo(normalised).numpy(), values.transpose(0, 3, 1, 2), atol=1e-6)


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


def test_validation_images_are_held_back_and_the_same_for_every_seed(small: UserInput) -> None:
    args = dataclasses.replace(small, validation_fraction=0.3)
    data, other = load_data(args, CPU), load_data(dataclasses.replace(args, seed=5), CPU)
    assert isinstance(data.validation, PlainLoader)
    assert data.validation.images == 10
    assert torch.equal(data.validation.pixels, other.validation.pixels)
    inner = slice(CROP_PADDING, -CROP_PADDING)
    kept = {image.numpy().tobytes() for image in data.train.pixels[:, inner, inner].contiguous()}
    held_back = {image.numpy().tobytes() for image in data.validation.pixels}
    assert len(kept) == 23
    assert not kept & held_back


def streaming(small: UserInput, **changes) -> UserInput:
    return dataclasses.replace(small, memory_gib=0.0, **changes)


def test_streams_do_not_depend_on_the_number_of_workers(small: UserInput) -> None:
    alone = load_data(streaming(small, workers=0), CPU)
    helped = load_data(streaming(small, workers=2), CPU)
    assert isinstance(alone.train, StreamLoader)
    expected = gathered(alone.train, epoch=2)
    torch.testing.assert_close(gathered(helped.train, epoch=2), expected, rtol=0, atol=0)
    torch.testing.assert_close(gathered(helped.train, 2, first=3)[0], expected[0][24:], rtol=0, atol=0)
    assert not torch.equal(gathered(alone.train, epoch=3)[0], expected[0])
    assert (alone.train.images, len(alone.train), len(expected[0])) == (32, 4, 32)


def test_streaming_leaves_the_global_generator_alone(small: UserInput) -> None:
    train = load_data(streaming(small, workers=0), CPU).train
    assert isinstance(train, StreamLoader)
    before = torch.get_rng_state()
    _Stream(train.image_set, train.transform, seed=0, epoch=1)[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_streamed_test_images_all_come_once(small: UserInput) -> None:
    images, labels = gathered(load_data(streaming(small, workers=0), CPU).test)
    assert images.shape == (3 * TEST, 3, SIDE, SIDE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(labels.tolist()) == [0] * TEST + [1] * TEST + [2] * TEST


def test_large_images_stream_and_small_ones_stay_in_memory(small: UserInput, tmp_path: Path) -> None:
    assert isinstance(load_data(small, CPU).train, AugmentedLoader)
    assert isinstance(load_data(dataclasses.replace(small, image_size=96), CPU).train, StreamLoader)


@pytest.mark.parametrize("how", ["emptied", "cut", "garbage"])
@pytest.mark.parametrize("workers", [None, 0, 1], ids=["memory", "stream", "worker"])
def test_an_unreadable_image_is_named(tmp_path: Path, small: UserInput, how: str, workers: int | None) -> None:
    folder = write_images(tmp_path / "bad")
    victim = folder / "train" / "one" / "03.png"
    whole = victim.read_bytes()
    victim.write_bytes({"emptied": b"", "cut": whole[: len(whole) // 2], "garbage": bytes(range(256))}[how])
    args = dataclasses.replace(small, data_dir=str(folder))
    args = args if workers is None else streaming(args, workers=workers)
    with pytest.raises(InputError, match=r"^data_dir: \S*one/03.png is no readable image[^\n]*$"):
        gathered(load_data(args, CPU).train)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path, small: UserInput) -> None:
    args = dataclasses.replace(small, data_dir=str(tmp_path / "folder"))
    with pytest.raises(InputError, match="data_dir: there is no folder .*train; imagefolder takes"):
        load_data(args, CPU)
    folder = write_images(tmp_path / "folder")
    shutil.copytree(folder / "train" / "one", folder / "train" / "three")
    with pytest.raises(InputError, match=r"classes in .* differ \(three is in one only\)"):
        load_data(args, CPU)
    (folder / "test" / "three").mkdir()
    with pytest.raises(InputError, match="data_dir: .*test.*three"):
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


def test_seeds_are_spread() -> None:
    seeds = {mix(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) == 2500


def test_fewer_training_images_are_a_part_of_more_and_the_same_for_every_seed() -> None:
    def pixels(**settings) -> set[bytes]:
        data = load_data(UserInput(dataset="digits", image_size=8, validation_fraction=0.1, **settings), CPU)
        assert (data.validation.images, data.test.images) == (144, 360)
        return {image.numpy().tobytes() for image in data.train.pixels}

    few, more = pixels(training_images=20), pixels(training_images=60, seed=1)
    assert len(few) == 20
    assert few < more < pixels()


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 1437), (0.1, 1293)])
def test_more_training_images_than_there_are_is_refused(fraction: float, count: int) -> None:
    args = UserInput(dataset="digits", image_size=8, validation_fraction=fraction, training_images=count)
    assert training_count(args) == count == len(load_data(args, CPU).train.labels)
    with pytest.raises(InputError, match=f"training_images: {count + 1} is not allowed; there are {count} to train on"):
        load_data(dataclasses.replace(args, training_images=count + 1), CPU)


def test_a_gpu_is_tested_on_larger_batches() -> None:
    assert evaluation_batch(96, 32, CPU) == 96
    assert evaluation_batch(96, 32, torch.device("cuda")) == 1024
    assert evaluation_batch(96, 224, torch.device("cuda")) == 96
