import dataclasses

import pytest
import torch
from torchvision.transforms import v2

from command_line.errors import InputError
from data_preprocessing import load_data
from data_sources import batches as batches_module
from data_sources.augmentation import (
    POLICIES,
    POLICY,
    SHARED,
    MixedLoader,
    Mixing,
    apply_policy,
    cut_out,
    mix_boxes,
    mix_up,
)
from data_sources.batches import mix
from user_input import UserInput

CPU = torch.device("cpu")
ALL = {"auto_augment": "trivial", "cutout": 5, "mixup": 0.4, "cutmix": 1.0}


def images(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_a_policy_is_torchvisions_on_each_image(name: str) -> None:
    pixels = images(37)
    done = apply_policy(name, pixels, slice(10, 47, 1), seed=3, epoch=2)
    changed = 0
    for place, image, result in zip(range(10, 47), pixels, done, strict=True):
        torch.manual_seed(mix(3, 2, place // SHARED, POLICY))
        assert torch.equal(POLICIES[name]()(image.permute(2, 0, 1)), result.permute(2, 0, 1))
        changed += not torch.equal(image, result)
    assert changed > 18


def test_a_policy_leaves_the_global_generator_alone() -> None:
    pixels, before = images(8), torch.random.get_rng_state()
    apply_policy("trivial", pixels, slice(0, 8, 1), seed=0, epoch=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cutout_is_a_square_of_zeros_where_it_is_inside() -> None:
    pixels = torch.ones(3, 3, 8, 8)
    done = cut_out(pixels, torch.tensor([[4, 0, 7], [4, 1, 7]]), 4)
    expected = torch.ones(3, 8, 8)
    expected[0, 2:6, 2:6] = expected[1, 0:2, 0:3] = expected[2, 5:8, 5:8] = 0
    assert torch.equal(done, expected[:, None].expand(3, 3, 8, 8))


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_two_images_are_mixed_as_torchvision_mixes_them(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    theirs = kind(alpha=1.0, num_classes=3)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor(0.7))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([5]))
    expected_pixels, expected_labels = theirs(pixels, labels)
    one_hot = torch.eye(3)[labels]
    ours = mix_up(pixels, one_hot, 0.7) if kind is v2.MixUp else mix_boxes(pixels, one_hot, 0.7, (5, 5))
    torch.testing.assert_close(ours, (expected_pixels, expected_labels))


def test_an_image_is_mixed_with_the_one_half_a_batch_on() -> None:
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    mixed, labels = mix_up(pixels, torch.eye(6), 0.75)
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([0.75, 1.75, 2.75, 2.25, 3.25, 4.25]))
    assert labels[4].tolist() == [0, 0.25, 0, 0, 0.75, 0]


def batches(args: UserInput, epoch: int = 2, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(load_data(args, CPU).train.batches(epoch, first))


@pytest.fixture
def mixed(small: UserInput) -> UserInput:
    return dataclasses.replace(small, workers=0, **ALL)


def test_an_epoch_goes_on_from_any_batch_and_is_the_same_from_disk(mixed: UserInput) -> None:
    whole = batches(mixed)
    for pixels, labels in whole:
        assert (pixels.shape, labels.shape) == ((8, 3, 12, 12), (8, 3))
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
    streamed = dataclasses.replace(mixed, memory_gib=0.0)
    for others, expected in ((batches(mixed, first=2), whole[2:]), (batches(streamed), whole)):
        torch.testing.assert_close(others, expected, rtol=0, atol=0)
    assert not torch.equal(batches(mixed, epoch=3)[0][0], whole[0][0])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_batches_of_one(
    mixed: UserInput, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    whole = batches(mixed)
    monkeypatch.setattr(batches_module, "size", lambda: processes)
    for number in range(processes):
        monkeypatch.setattr(batches_module, "rank", lambda number=number: number)
        own = batches(mixed)
        expected = [(pixels[number::processes], labels[number::processes]) for pixels, labels in whole]
        torch.testing.assert_close(own, expected)


def test_pairs_that_processes_cannot_share_out_are_refused(mixed: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "size", lambda: 2)
    with pytest.raises(InputError, match="batch_size: 6 images, mixed in pairs"):
        load_data(dataclasses.replace(mixed, batch_size=6), CPU)
    load_data(dataclasses.replace(mixed, batch_size=6, mixup=0.0, cutmix=0.0), CPU)


@dataclasses.dataclass
class Alike:
    """An epoch of so many batches that are all the same: four images of as many classes."""

    number: int
    pixels: torch.Tensor

    @property
    def images(self) -> int:
        return 4 * self.number

    def __len__(self) -> int:
        return self.number

    def batches(self, epoch: int = 0, first: int = 0):
        for _ in range(first, self.number):
            yield self.pixels, torch.arange(4)


def test_beside_each_other_each_batch_takes_mixup_or_cutmix() -> None:
    plain = Alike(100, torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16))
    loader = MixedLoader(plain, Mixing(mixup=1.0, cutmix=1.0), batch_size=4, classes=4, seed=0)
    boxed = 0
    for pixels, labels in loader.batches(1):
        share = labels[0, 0]
        torch.testing.assert_close(pixels[0].mean(), 2 * (1 - share))
        boxed += set(pixels[0].unique().tolist()) <= {0.0, 2.0}
    assert 35 < boxed < 65


def test_a_stream_of_large_images_draws_for_each_image(small: UserInput) -> None:
    plain = dataclasses.replace(small, image_size=96, workers=0)
    one, other = batches(plain)[0][0], batches(dataclasses.replace(plain, auto_augment="rand"))[0][0]
    assert one.shape == other.shape
    assert sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True)) > len(one) // 2


@pytest.mark.parametrize("mixing", [Mixing(cutout=6), Mixing(mixup=1.0), Mixing(cutmix=1.0)])
def test_each_batch_epoch_and_seed_has_draws_of_its_own(mixing: Mixing) -> None:
    def drawn(seed: int, epoch: int) -> list[torch.Tensor]:
        batches = MixedLoader(Alike(20, torch.ones(4, 3, 16, 16)), mixing, batch_size=4, classes=4, seed=seed).batches(
            epoch
        )
        return [torch.cat([pixels.flatten(), labels.flatten()]) for pixels, labels in batches]

    first = drawn(0, 1)
    assert all(torch.equal(one, other) for one, other in zip(first, drawn(0, 1), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(torch.cat(first), torch.cat(drawn(0, 2)))
    assert not torch.equal(torch.cat(first), torch.cat(drawn(1, 1)))


def test_cutout_draws_a_place_for_each_image() -> None:
    loader = MixedLoader(Alike(20, torch.ones(4, 3, 16, 16)), Mixing(cutout=6), batch_size=4, classes=4, seed=0)
    pixels, _ = next(loader.batches(1))
    assert len({tuple(image.flatten().tolist()) for image in pixels}) == 4
