"""The data set of a run, its augmentation, and the loaders that hand out batches on the training device.

Small images live in memory as uint8, on the training device, and a whole batch is cropped, flipped and normalised
there by one gather. What does not fit streams through worker processes. Either way the order of the images and
every draw of the augmentation are a function of (seed, epoch) alone: neither the device, nor the number of workers,
nor a resumption changes them. Of several processes each gets its share of every batch.

`data_sources/` has what is not augmentation: the data sets, the reading of images, the loaders without it.

Shapes: n images of a data set · b of a batch · s side in pixels · images are (n, s, s, 3) uint8 in memory,
and (b, 3, s, s) float32, normalised, channels last, as they are handed out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from acceleration.distributed import one_before_the_others
from command_line.errors import InputError
from data_sources import sources
from data_sources.batches import (
    Batch,
    Loader,
    OrderedLoader,
    check_shares,
    evaluation_batch,
    mix,
    shares,
    training_batch,
)
from data_sources.image_set import ImageSet, limit, split
from data_sources.images import centre_crop
from data_sources.in_memory import PlainLoader, decode
from data_sources.normalisation import (
    CIFAR10_STATISTICS,
    IMAGENET_STATISTICS,
    Normalisation,
    measure_normalisation,
)
from data_sources.streaming import StreamLoader
from user_input import UserInput

CROP_PADDING = 4  # pixels around a small image before its random crop (study)
SMALL_IMAGE = 64  # pixels; larger images get ImageNet's augmentation and stream
RESIZE_RATIO = 256 / 224  # side to which a larger test image is resized, to the side of its centre crop
NOT_FLIPPED = ("digits",)  # a mirrored digit is no digit

Loaders = tuple[Loader, Sequence[OrderedLoader], Normalisation]  # of the training images, of the others


@dataclass(frozen=True)
class Data:
    """A data set, ready to be trained on."""

    train: Loader
    validation: OrderedLoader | None
    test: OrderedLoader
    classes: tuple[str, ...]
    normalisation: Normalisation


def load_data(args: UserInput, device: torch.device) -> Data:
    """The data set that the settings name.

    Raises:
        InputError: files are missing, damaged or do not agree; nothing has been written but a download.
    """
    with one_before_the_others():
        source = sources.read_source(args.dataset, args.data_path)
    train, validation = split(source.train, args.validation_fraction)
    train = limit(train, args.training_images)
    check_shares(len(train), args.batch_size, args.sync_batch_norm)
    parts = [part for part in (train, source.test, validation) if part is not None]
    fits = fits_in_memory(args.image_size, len(train) + len(source.test), args.memory_gib)
    loader, (test_loader, *others), normalisation = (_in_memory if fits else _streaming)(args, parts, device)
    return Data(loader, others[0] if validation else None, test_loader, source.classes, normalisation)


def class_count(args: UserInput) -> int:
    """The number of classes, without reading an image."""
    return sources.class_count(args.dataset, args.data_path)


def training_count(args: UserInput) -> int:
    """The number of images that there are to train on, without reading one; `training_images` is at most this."""
    count = sources.training_count(args.dataset, args.data_path)
    return count - math.ceil(args.validation_fraction * count)  # rounded as `train_test_split` does


def fits_in_memory(image_size: int, images: int, memory_gib: float) -> bool:
    """Whether that many images of training and test together stay in memory."""
    return image_size <= SMALL_IMAGE and images * image_size**2 * 3 <= memory_gib * 2**30


def centre_view(image_size: int, in_memory: bool) -> Callable[[Image.Image], Image.Image]:
    """What makes an image s × s pixels in a test."""
    return centre_crop(image_size, None if in_memory else round(image_size * RESIZE_RATIO))


# --------------------------------------------------------------------------------------------------- in memory


def _in_memory(args: UserInput, parts: Sequence[ImageSet], device: torch.device) -> Loaders:
    pixels = [decode(part, args.image_size) for part in parts]
    study = args.normalisation == "study" or (args.normalisation == "auto" and args.dataset == "cifar10")
    normalisation = Normalisation(*CIFAR10_STATISTICS) if study else measure_normalisation(pixels[0])
    train, *others = (
        PlainLoader(images.to(device), torch.from_numpy(part.labels).to(device), args.batch_size, normalisation)
        for part, images in zip(parts, pixels, strict=True)
    )
    batch_size = evaluation_batch(args.batch_size, args.image_size, device)
    others = [replace(loader, batch_size=batch_size) for loader in others]
    return AugmentedLoader.of(train, args.seed, args.dataset not in NOT_FLIPPED), others, normalisation


@dataclass(frozen=True)
class AugmentedLoader:
    """Full batches in a new order each epoch, every image cropped and flipped by a draw of its own.

    The images left over after the last full batch wait for another epoch's order: all batches have one shape,
    and no batch norm ever sees a lone image.
    """

    pixels: Tensor  # (n, s + 2·padding, s + 2·padding, 3) uint8, on the device
    labels: Tensor  # (n,) int64, on the device
    batch_size: int
    normalisation: Normalisation
    seed: int
    flip: bool

    @classmethod
    def of(cls, plain: PlainLoader, seed: int, flip: bool) -> "AugmentedLoader":
        """The images of `plain`, padded once for all the crops to come."""
        pixels = F.pad(plain.pixels, (0, 0, *(CROP_PADDING,) * 4))
        batch_size = training_batch(plain.batch_size, plain.images)
        return cls(pixels, plain.labels, batch_size, plain.normalisation, seed, flip)

    @property
    def images(self) -> int:
        return len(self) * self.batch_size

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        # drawn on the CPU, a whole epoch at once: the same on every device, and one transfer
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        count, device = len(self.labels), self.pixels.device
        order = torch.randperm(count, generator=generator).to(device)
        top, left = torch.randint(2 * CROP_PADDING + 1, (2, count), generator=generator).to(device)
        flip = (torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)).to(device)
        for share in shares(self.images, self.batch_size, first):
            pixels = crop_and_flip(self.pixels, order[share], top[share], left[share], flip[share])
            yield self.normalisation.apply(pixels), self.labels[order[share]]


def crop_and_flip(pixels: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Cut images `index` out of padded `pixels` (n, s + 2p, s + 2p, 3) at (`top`, `left`), all (b,), in one gather.

    Where `flip` holds, the columns are taken from right to left. Gives (b, s, s, 3) uint8.
    """
    side = pixels.shape[1] - 2 * CROP_PADDING
    offsets = torch.arange(side, device=pixels.device)
    rows = top[:, None] + offsets  # (b, s)
    columns = left[:, None] + torch.where(flip[:, None], side - 1 - offsets, offsets)  # (b, s)
    return pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]


# --------------------------------------------------------------------------------------------------- streaming


def _streaming(args: UserInput, parts: Sequence[ImageSet], device: torch.device) -> Loaders:
    if args.normalisation == "measured":
        raise InputError("normalisation: measured needs images that fit into memory; take auto, or raise memory_gib")
    statistics = CIFAR10_STATISTICS if args.normalisation == "study" else IMAGENET_STATISTICS
    flip = v2.RandomHorizontalFlip(0.0 if args.dataset in NOT_FLIPPED else 0.5)
    train = StreamLoader(
        image_set=parts[0],
        transform=v2.Compose([v2.RandomResizedCrop(args.image_size), flip]),
        batch_size=training_batch(args.batch_size, len(parts[0])),
        normalisation=Normalisation(*statistics),
        seed=args.seed,
        train=True,
        workers=args.workers,
        device=device,
    )
    plain = replace(
        train,
        transform=centre_view(args.image_size, in_memory=False),
        batch_size=evaluation_batch(args.batch_size, args.image_size, device),
        train=False,
    )
    return train, [replace(plain, image_set=part) for part in parts[1:]], train.normalisation
