"""What current practice does to training images beyond crop and mirror: policies, Cutout, mixup and CutMix.

All draws are a function of (seed, epoch) and of an image's place in the epoch's order: neither the device, nor the
number of processes, nor a resumption changes them.

b images of a batch, or of a process's share of it · s side in pixels
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from data_sources.batches import Batch, Loader, mix, shares

# They draw operations and strengths: Müller & Hutter (2021); Cubuk et al. (2020), two operations of magnitude 9 of 31
POLICIES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
# Images in memory, in a row of the order, for which a policy draws once. One by one takes more than ten times as long:
# on 32×32 images, most of the time is that of torchvision's calls.
SHARED = 16
POLICY, MIXING = 2, 3  # tell these draws from the others of an epoch


def apply_policy(name: str, pixels: Tensor, share: slice, seed: int, epoch: int) -> Tensor:
    """A policy, or `none`, on (b, s, s, 3) uint8 images at the places `share` of the epoch's order."""
    if name == "none":
        return pixels
    policy = POLICIES[name]()
    groups, counts = np.unique(np.arange(share.start, share.stop, share.step) // SHARED, return_counts=True)
    done = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        for group, part in zip(groups.tolist(), pixels.permute(0, 3, 1, 2).split(counts.tolist()), strict=True):
            torch.default_generator.manual_seed(mix(seed, epoch, group, POLICY))
            done.append(policy(part))
    return torch.cat(done).permute(0, 2, 3, 1).contiguous()  # channels last from here on


@dataclass(frozen=True)
class Mixing:
    """What is done to normalised batches: Cutout (DeVries & Taylor, 2017), and mixup (Zhang et al., 2018) or CutMix.

    An image is mixed with the one half a batch further on, which the same process has. Of a batch all images are mixed
    in one way, by one share λ out of Beta(α, α), as torchvision's `MixUp` and `CutMix` do.
    """

    cutout: int | None = None  # side in pixels of a square that becomes the mean
    mixup: float = 0.0  # α; 0: none
    cutmix: float = 0.0  # α; 0: none. Where both are asked for, every batch takes one of them

    def __bool__(self) -> bool:
        return bool(self.cutout or self.mixup or self.cutmix)


@dataclass(frozen=True)
class MixedLoader:
    """The batches of another loader for training, mixed; their labels are (b, classes), the share of each class."""

    plain: Loader
    mixing: Mixing
    batch_size: int
    classes: int
    seed: int

    @property
    def images(self) -> int:
        return self.plain.images

    def __len__(self) -> int:
        return len(self.plain)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        parts = shares(self.images, self.batch_size, first)
        for number, (pixels, labels) in enumerate(self.plain.batches(epoch, first), first):
            draw = np.random.default_rng((self.seed, epoch, number, MIXING))
            start = number * self.batch_size
            share = parts[number - first]
            own = slice(share.start - start, share.stop - start, share.step)
            yield self._mixed(pixels, F.one_hot(labels, self.classes).float(), own, draw)

    def _mixed(self, pixels: Tensor, labels: Tensor, own: slice, draw: np.random.Generator) -> Batch:
        side, mixing = pixels.shape[2], self.mixing
        if mixing.cutout:
            centres = draw.integers(side, size=(2, self.batch_size))[:, own]
            pixels = cut_out(pixels, torch.from_numpy(centres).to(pixels.device), mixing.cutout)
        if not (mixing.mixup or mixing.cutmix):
            return pixels, labels
        by_box = bool(mixing.cutmix) and (not mixing.mixup or draw.random() < 0.5)
        alpha = mixing.cutmix if by_box else mixing.mixup
        share, centre = draw.beta(alpha, alpha), draw.integers(side, size=2)
        if by_box:
            return mix_boxes(pixels, labels, share, (int(centre[0]), int(centre[1])))
        return mix_up(pixels, labels, share)


def cut_out(pixels: Tensor, centres: Tensor, side: int) -> Tensor:
    """(b, 3, s, s) normalised, centres (2, b) in pixels: a square of that side becomes 0, the mean."""
    offsets = torch.arange(pixels.shape[2], device=pixels.device) - (centres - side // 2)[:, :, None]  # (2, b, s)
    rows, columns = (offsets >= 0) & (offsets < side)
    inside = rows[:, :, None] & columns[:, None, :]
    return pixels.where(~inside[:, None], 0.0)  # `masked_fill` loses channels last


def _partners(values: Tensor) -> Tensor:
    half = len(values) // 2
    return torch.cat([values[-half:], values[:-half]])  # as `roll`, which loses channels last


def mix_up(pixels: Tensor, labels: Tensor, share: float) -> Batch:
    """(b, 3, s, s), (b, classes): `share` of each image and of its labels, and the rest of its partner's."""
    return _partners(pixels).lerp(pixels, share), _partners(labels).lerp(labels, share)


def mix_boxes(pixels: Tensor, labels: Tensor, share: float, centre: tuple[int, int]) -> Batch:
    """(b, 3, s, s), (b, classes): a box of 1 − `share` of the image, where it is inside, comes from its partner."""
    side = pixels.shape[2]
    half = int(0.5 * math.sqrt(1.0 - share) * side)
    rows, columns = (slice(max(0, at - half), min(side, at + half)) for at in centre)
    mixed = pixels.clone()
    mixed[:, :, rows, columns] = _partners(pixels)[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, _partners(labels).lerp(labels, 1.0 - area / side**2)
