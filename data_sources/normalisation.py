"""Mean and standard deviation by which images are normalised: known ones, and those of the images at hand.

b images of a batch · s side in pixels
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """(b, s, s, 3) uint8 -> (b, 3, s, s) float32, channels last, without another copy."""
        mean, std = _on_device(self, images.device)
        return images.to(torch.float32).sub_(255.0 * mean).div_(255.0 * std).permute(0, 3, 1, 2)

    def undo(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) normalised -> the same with pixels in 0..1, to be looked at."""
        mean, std = _on_device(self, images.device)
        return (images * std.view(3, 1, 1) + mean.view(3, 1, 1)).clamp(0.0, 1.0)


# The study's values for CIFAR-10. Its standard deviations are means over the images' own, about 0.8 of the data
# set's; kept, since the first batch norm absorbs the factor.
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEASURED_TOGETHER = 4096  # images of 64 pixels a side, or smaller
MEASURED_BATCH = 64  # of them are read at once where they stream


@lru_cache
def _on_device(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) there; kept, since a transfer per batch would make a GPU wait."""
    return torch.tensor(normalisation.mean, device=device), torch.tensor(normalisation.std, device=device)


def measured_together(side: int) -> int:
    """How many images of that side are summed up at once, at most 400 MiB in float64: few, or a multiple of a batch."""
    together = max(1, MEASURED_TOGETHER * 64**2 // max(64, side) ** 2)
    return together if together < MEASURED_BATCH else together // MEASURED_BATCH * MEASURED_BATCH


def measure_normalisation(parts: Iterable[Tensor]) -> Normalisation:
    """Mean and standard deviation, channel by channel, over all the pixels of (n, s, s, 3) uint8 images, part by part.

    The same images in the same parts give the same figures, bit for bit.
    """
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for part in parts:
        values = part.reshape(-1, 3).to(torch.float64) / 255.0
        total, squares, count = total + values.sum(0), squares + values.square().sum(0), count + len(values)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1 / 255**2).sqrt()  # a constant channel stays finite
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))
