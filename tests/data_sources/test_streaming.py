"""Images that stream through worker processes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIDE, TEST, write_images
from loader_tools import gathered
from PIL import Image
from torchvision.transforms import v2

from command_line.errors import InputError
from data_preprocessing import AugmentedLoader, load_data
from data_sources.batches import mix
from data_sources.streaming import StreamLoader, _Stream
from user_input import UserInput

CPU = torch.device("cpu")


def streaming(small: UserInput, **changes) -> UserInput:
    return dataclasses.replace(small, augmentation="resized_crop", **changes)


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


def test_streamed_crops_are_torchvisions_of_draws_by_seed_epoch_and_image(small: UserInput) -> None:
    train = load_data(streaming(small, workers=0, seed=3), CPU).train
    theirs = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])
    order = train._order(2)
    pixels, _ = next(train.pixels([order[:8]], epoch=2))
    for i, ours in zip(order, pixels, strict=False):
        torch.manual_seed(mix(3, 2, i))
        assert np.array_equal(ours, theirs(train.image_set.read(i)))
    assert order not in (train._order(1), dataclasses.replace(train, seed=4)._order(2))


def test_streamed_digits_are_never_mirrored() -> None:
    args = UserInput(dataset="digits", image_size=8, memory_gib=0.0, workers=0)
    crops = load_data(dataclasses.replace(args, augmentation="resized_crop"), CPU).train
    half = Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, axis=0).astype(np.uint8)).convert("RGB")
    drawn = [np.asarray(crops.transform(half)).mean((0, 2)) for _ in range(40)]
    assert all(np.all(np.diff(columns) >= 0) for columns in drawn)
    streamed, held = (load_data(dataclasses.replace(args, memory_gib=gib), CPU).train for gib in (0.0, 2.0))
    assert isinstance(held, AugmentedLoader)
    for ours, theirs in zip(next(streamed.batches(1)), next(held.batches(1)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_pass_draws_nothing_from_the_global_generator(small: UserInput) -> None:
    before = torch.get_rng_state()
    gathered(load_data(streaming(small, workers=0), CPU).train)
    assert torch.equal(torch.get_rng_state(), before)
