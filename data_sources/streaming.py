"""Images that do not fit in memory: read from disk by worker processes while the device computes.

b images of a batch · s side in pixels
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from command_line.errors import InputError
from data_sources.batches import Batch, mix, shares
from data_sources.image_set import ImageSet
from data_sources.normalisation import Normalisation

GRACE = 0.5  # seconds in which a worker that is ending has ended
PATIENCE = 5.0  # seconds that a worker is waited for


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
            generator=torch.Generator(),  # else it draws from the global one, whose state a checkpoint keeps
        )
        for pixels, labels in _batches_of(loader):
            there = torch.from_numpy(labels).to(self.device, non_blocking=True)
            yield pixels.to(self.device, non_blocking=True), there

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


def _collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, np.ndarray]:
    # a worker puts the images into memory that the processes share, and says so where there is too little. What it sent
    # in tensors later, by a thread of its own, would then be lost without a word, and waited for: so labels are none
    images = default_collate([image for image, _ in items]) if items else torch.empty(0, 1, 1, 3, dtype=torch.uint8)
    return images, np.array([label for _, label in items], np.int64)


def _batches_of(loader: DataLoader) -> Iterator[tuple[Tensor, np.ndarray]]:
    """All the batches; what its workers meet, and their own end, is told in one line.

    Raises:
        InputError: in place of a worker's error, which comes with its traceback.
    """
    workers: list[BaseProcess] = []
    try:
        batches, workers = _start(loader)
        yield from batches
    except Exception as error:
        reason = _what_ended(workers, error)
        for worker in workers:  # which the error's traceback would keep, and they the run's lock
            worker.terminate()
            worker.join(PATIENCE)
        if reason:
            raise InputError(reason) from (None if isinstance(error, InputError) else error)
        raise


def _start(loader: DataLoader) -> tuple[Iterator, list[BaseProcess]]:
    """The loader's batches, and the processes that read them.

    PyTorch would tell of the death of one by an error wherever the main process happens to be, such as in the middle of
    a step, whose network is not sound. Without its handler, that is met where the next batch is waited for.
    """
    number, others = getattr(signal, "SIGCHLD", None), multiprocessing.active_children()
    usual = number and signal.getsignal(number)
    batches = iter(loader)
    if number and usual is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, usual)
    return batches, [process for process in multiprocessing.active_children() if process not in others]


def _what_ended(workers: list[BaseProcess], error: Exception) -> str | None:
    """Why there are no more batches, in one line; None where nobody has foreseen it."""
    if isinstance(error, InputError):  # with a worker's traceback, of which the last line is the message
        return str(error).strip().splitlines()[-1].removeprefix("command_line.errors.InputError: ")
    for worker in workers:  # its connection breaks before its end can be asked for
        worker.join(GRACE)
    ends = [worker.exitcode for worker in workers if worker.exitcode]
    if "shared memory" in str(error) or -getattr(signal, "SIGBUS", 0) in ends:
        reason = "the memory that processes share is full (/dev/shm; docker run --shm-size 2g gives more)"
    elif ends:
        by = f"signal {-ends[0]}" if ends[0] < 0 else f"code {ends[0]}"
        hint = ", as the system ends processes where memory runs out" if ends[0] == -9 else ""
        reason = f"a process that loads images was ended by {by}{hint}"
    elif isinstance(error, OSError) or "open files" in str(error):
        reason = f"the processes that load images cannot work ({' '.join(str(error).split())[:200]})"
    else:
        return None
    return (
        f"workers: {reason}; take fewer workers (0: the main process reads) or a smaller batch_size, or, for small "
        "images, a memory_gib that holds them all"
    )


def _leave_signals_to_main(worker: int) -> None:
    # Ctrl-C, and torchrun's SIGTERM, reach a whole process group; main ends the workers, by a SIGTERM of its own
    if os.name == "posix":
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
