"""Images that do not fit in memory: read from disk by worker processes while the device computes.

b images of a batch · s side in pixels
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from command_line.errors import InputError
from data_sources.batches import Batch, mix, shares
from data_sources.image_set import ImageSet
from data_sources.normalisation import Normalisation


@dataclass(frozen=True)
class StreamLoader:
    """Batches read from disk: in training full ones in a new order each epoch, else every image once, in order."""

    image_set: ImageSet
    transform: Callable[[Image.Image], Image.Image]  # of any size -> s × s pixels
    batch_size: int
    normalisation: Normalisation
    seed: int
    train: bool
    workers: int
    device: torch.device

    @property
    def images(self) -> int:
        return len(self) * self.batch_size if self.train else len(self.image_set)

    def __len__(self) -> int:
        count = len(self.image_set)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        order = self._order(epoch)
        parts = [order[share] for share in shares(self.images, self.batch_size, first)]
        for pixels, labels in self.pixels(parts, epoch):
            yield self.normalisation.apply(pixels), labels

    def pixels(self, parts: Iterable[list[int]], epoch: int = 0) -> Iterator[Batch]:
        """Of each part, the images of these numbers as (b, s, s, 3) uint8, and their labels, on the device."""
        loader = DataLoader(
            _Stream(self.image_set, self.transform, self.seed, epoch),
            batch_sampler=parts,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_main,
        )
        try:
            for pixels, labels in loader:
                yield pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except InputError as error:  # a worker's error comes with its traceback: the last line is the message
            raise InputError(
                str(error).strip().splitlines()[-1].removeprefix("command_line.errors.InputError: ")
            ) from None

    def reordered(self, order: Tensor, batch_size: int) -> "StreamLoader":
        return replace(self, image_set=self.image_set.part(order.numpy()), batch_size=batch_size)

    def _order(self, epoch: int) -> list[int]:
        count = len(self.image_set)
        if not self.train:
            return list(range(count))
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(count, generator=generator).tolist()


class _Stream(Dataset):
    """Image i of an epoch as (s, s, 3) uint8, its augmentation drawn from (seed, epoch, i) whoever reads it."""

    def __init__(self, image_set: ImageSet, transform: Callable, seed: int, epoch: int) -> None:
        self.image_set, self.transform, self.seed, self.epoch = image_set, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.image_set.read(i)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(mix(self.seed, self.epoch, i))
            image = self.transform(image)
        return torch.from_numpy(np.array(image)), int(self.image_set.labels[i])


def _collate(items: list[tuple[Tensor, int]]) -> Batch:
    return default_collate(items) if items else (torch.empty(0, 1, 1, 3, dtype=torch.uint8), torch.empty(0).long())


def _leave_signals_to_main(worker: int) -> None:
    # Ctrl-C, and torchrun's SIGTERM, reach a whole process group; main ends the workers, by a SIGTERM of its own
    if os.name == "posix":
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
