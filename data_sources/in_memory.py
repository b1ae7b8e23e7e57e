"""Small images in memory as uint8, on the training device: read once, all of one size.

n images of a data set · s side in pixels
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from acceleration.distributed import hide_bar
from data_sources.batches import Batch, shares
from data_sources.image_set import ImageSet
from data_sources.images import centre_crop
from data_sources.normalisation import Normalisation


def decode(image_set: ImageSet, side: int) -> Tensor:
    """All the images as (n, side, side, 3) uint8; those of another size are resized and their centre taken."""
    fit = centre_crop(side)

    def read(i: int) -> np.ndarray:
        image = image_set.read(i)
        return np.asarray(image if image.size == (side, side) else fit(image))

    count = len(image_set)
    images = np.empty((count, side, side, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding a JPEG releases the interpreter's lock
        rows = pool.map(read, range(count))
        for i, row in enumerate(tqdm(rows, "reading images", count, leave=False, disable=hide_bar(), unit="img")):
            images[i] = row
    return torch.from_numpy(images)


@dataclass(frozen=True)
class PlainLoader:
    """Every image once, in order, as it is; the last batch may be smaller."""

    pixels: Tensor  # (n, s, s, 3) uint8, on the device
    labels: Tensor  # (n,) int64, on the device
    batch_size: int
    normalisation: Normalisation

    @property
    def images(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        for share in shares(self.images, self.batch_size, first):
            yield self.normalisation.apply(self.pixels[share]), self.labels[share]

    def reordered(self, order: Tensor, batch_size: int) -> "PlainLoader":
        order = order.to(self.labels.device)
        return replace(self, pixels=self.pixels[order], labels=self.labels[order], batch_size=batch_size)
