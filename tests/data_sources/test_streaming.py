"""Images that stream through worker processes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import SIDE, TEST, write_images
from loader_tools import gathered

from command_line.errors import InputError
from data_preprocessing import load_data
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
