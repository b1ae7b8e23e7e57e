import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_tools import gathered
from PIL import Image

from command_line.errors import InputError
from data_preprocessing import (
    CROP_PADDING,
    AugmentedLoader,
    CroppedStream,
    crop_and_flip,
    load_data,
    load_test,
    training_count,
)
from data_sources.image_set import ImageSet
from data_sources.in_memory import PlainLoader
from data_sources.normalisation import Normalisation
from data_sources.streaming import StreamLoader
from user_input import UserInput

CPU = torch.device("cpu")
PLAIN = Normalisation((0.0, 0.0, 0.0), (1 / 255,) * 3)  # leaves the pixels' values 0..255


def numbered(count: int, side: int = 6) -> PlainLoader:
    """Images of one value each, 1..count, so that a zero is padding and a value tells the image."""
    pixels = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3).contiguous()
    return PlainLoader(pixels, torch.arange(count), batch_size=4, normalisation=PLAIN)


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


def test_large_images_stream_and_small_ones_stay_in_memory(small: UserInput, tmp_path: Path) -> None:
    assert isinstance(load_data(small, CPU).train, AugmentedLoader)
    assert isinstance(load_data(dataclasses.replace(small, image_size=96), CPU).train, StreamLoader)


def test_all_that_is_kept_in_memory_counts(small: UserInput) -> None:
    args = dataclasses.replace(small, validation_fraction=0.3, workers=0)
    held = load_data(args, CPU)
    taken = sum(part.pixels.nbytes for part in (held.train, held.validation, held.test)) / 2**30
    fitting, larger = (load_data(dataclasses.replace(args, memory_gib=gib), CPU) for gib in (taken, taken - 2**-30))
    assert isinstance(fitting.train, AugmentedLoader)
    assert isinstance(larger.train, CroppedStream)


def test_a_test_alone_has_the_batches_that_are_asked_for() -> None:
    images = ImageSet(lambda i: Image.new("RGB", (8, 8)), np.zeros(5, np.int64))
    for memory_gib in (0.0, 2.0):
        args = UserInput(image_size=8, batch_size=4, memory_gib=memory_gib)
        assert load_test(args, images, PLAIN, CPU).batch_size == 4
        assert load_test(args, images, PLAIN, CPU, batch_size=3).batch_size == 3
    streamed = UserInput(image_size=8, batch_size=4, memory_gib=0.0)
    sizes = [load_test(streamed, images, PLAIN, torch.device("cuda"), asked).batch_size for asked in (None, 2)]
    assert sizes == [32, 2]


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
