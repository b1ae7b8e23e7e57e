"""What a loader is, how large a batch is, and which images of it are a process's own."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from acceleration.distributed import rank, size
from command_line.errors import InputError

# Of a batch of a test on a GPU, where a larger one takes no longer: 1024 images of CIFAR; but at most so many times the
# images of a training step, so that a smaller batch_size takes less memory here too. It changes no figure.
TEST_BATCH_PIXELS = 2**20
TEST_BATCH_STEPS = 8

Batch = tuple[Tensor, Tensor]
Until = Callable[[Iterable[Batch]], Iterator[Batch]]  # hands on all of the batches, or those before a stop


class Loader(Protocol):
    """What training and test ask of their data: `images` images in `len(loader)` batches, of all processes together."""

    @property
    def images(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Images (b, 3, s, s) and labels (b,) of an epoch on the device, from batch number `first` on.

        Where images are mixed, the labels are (b, classes), the share of each class.

        Of several processes each gets its share: in training as many images as every other one, in a test perhaps
        one less, so that of the last batch there may be none.
        """
        ...


class OrderedLoader(Loader, Protocol):
    """Hands out every image once, in the data's order; a process's positions are `shares(images, batch_size)`."""

    @property
    def batch_size(self) -> int: ...

    def reordered(self, order: Tensor, batch_size: int) -> "OrderedLoader":
        """The same images, those of the positions `order` (n,), in batches of another size."""
        ...


def check_shares(images: int, batch_size: int, sync_batch_norm: bool, paired: bool = False, pieces: int = 1) -> None:
    """Refuse a batch that the processes cannot share out evenly, or that leaves one of them too little for batch norm.

    Where images are `paired`, each with the one half a batch further on, a process has both of them. It computes its
    share in so many `pieces`.

    Raises:
        InputError: naming what is too small.
    """
    if batch_size % size():
        raise InputError(f"batch_size: {batch_size} cannot be shared out evenly among {size()} processes")
    least = size() if sync_batch_norm and size() > 1 else 2 * size()
    if images < least:
        raise InputError(f"data_dir: {images} training images are too few; batch norm needs two at least")
    if batch_size < least:
        raise InputError(
            f"batch_size: {batch_size} leaves one image for each of {size()} processes, and batch norm needs two; "
            f"take {least} at least, or sync_batch_norm"
        )
    if paired and size() > 1 and training_batch(batch_size, images) % (2 * size()):
        raise InputError(
            f"batch_size: {batch_size} images, mixed in pairs, cannot be shared out evenly among {size()} processes"
        )

    own = training_batch(batch_size, images) // size()
    if pieces > 1 and own < 2 * pieces:
        raise InputError(
            f"accumulate: {pieces} pieces of the {own} images that a process has of a batch are too small, since batch "
            f"norm needs two images in each; takes at most {max(1, own // 2)}"
        )


def training_batch(batch_size: int, images: int) -> int:
    """Images in a training step: `batch_size`, or as many as there are and can be shared out evenly."""
    return min(batch_size, images // size() * size())


def evaluation_batch(batch_size: int, image_size: int, device: torch.device) -> int:
    """Images of a run's test's batch: on a GPU as many as keep it busy, else as many as in training."""
    if device.type == "cpu":
        return batch_size
    busy = min(TEST_BATCH_PIXELS // image_size**2, TEST_BATCH_STEPS * batch_size)
    return max(batch_size, busy // size() * size())


def shares(count: int, batch_size: int, first: int = 0) -> list[slice]:
    """This process's part of each batch of `count` images, from batch number `first` on.

    Every `size()`-th image is a process's own: as many in each where the batch is full, or one less in some.
    """
    starts = range(first * batch_size, count, batch_size)
    return [slice(start + rank(), min(start + batch_size, count), size()) for start in starts]


def mix(*numbers: int) -> int:
    """One well-spread seed out of several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
