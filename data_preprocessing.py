"""The data set of a run, its augmentation, and the loaders that hand out batches on the training device.

What the network sees follows from the settings of the recipe: `crop` (study), where a batch is moved, mirrored and
normalised by one gather, or `resized_crop` (ImageNet). Where the images lie, in memory as uint8 on the training device
or on the disk, is another matter and changes no figure. The order of the images and every draw of the augmentation are
a function of (seed, epoch) alone: neither the device, nor the number of workers, nor a resumption changes them. Of
several processes each gets its share of every batch.

`data_sources/` has what is not augmentation: the data sets, the reading of images, the loaders without it.

Shapes: n images of a data set · b of a batch · s side in pixels · images are (n, s, s, 3) uint8 in memory,
and (b, 3, s, s) float32, normalised, channels last, as they are handed out.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from acceleration.distributed import hide_bar, on_main, one_before_the_others
from command_line.errors import InputError
from data_sources import sources
from data_sources.augmentation import POLICIES, MixedLoader, Mixing, apply_policy
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
from data_sources.image_set import ImageSet, Source, limit, split
from data_sources.images import centre_crop
from data_sources.in_memory import PlainLoader, decode
from data_sources.layout import FolderOptions
from data_sources.normalisation import (
    CIFAR10_STATISTICS,
    IMAGENET_STATISTICS,
    MEASURED_BATCH,
    Normalisation,
    measure_normalisation,
    measured_together,
)
from data_sources.streaming import StreamLoader
from user_input import NOT_FLIPPED, UserInput

CROP_PADDING = 4  # pixels around a small image before its random crop (study)
RESIZE_RATIO = 256 / 224  # side to which a test image is resized, to the side of its centre crop (ImageNet)

Loaders = tuple[Loader, Sequence[OrderedLoader], Normalisation]  # of the training images, of the others


@dataclass(frozen=True)
class Data:
    """A data set, ready to be trained on."""

    train: Loader
    validation: OrderedLoader | None
    test: OrderedLoader
    test_images: ImageSet  # the same, before they are read
    classes: tuple[str, ...]
    normalisation: Normalisation
    whites: dict[str, float] = field(default_factory=dict)  # in images of more than 8 bits
    notes: tuple[str, ...] = ()  # lines on the images, for the head of the log
    fingerprint: dict[str, Any] = field(default_factory=dict)  # of each part's files, by which it is known again


def load_data(args: UserInput, device: torch.device) -> Data:
    """The data set that the settings name.

    Raises:
        InputError: files are missing, damaged or do not agree; nothing has been written but a download.
    """
    with one_before_the_others():
        source = sources.read_source(args.dataset, args.data_path, folder_options(args))
    train, validation = _train_and_validation(args, source)
    paired = bool(args.mixup or args.cutmix)
    check_shares(len(train), args.batch_size, args.sync_batch_norm, paired, args.accumulate)
    parts = [part for part in (train, source.test, validation) if part is not None]
    pixels = len(train) * (args.image_size + 2 * CROP_PADDING) ** 2  # which `AugmentedLoader` keeps padded
    pixels += sum(map(len, parts[1:])) * args.image_size**2
    in_memory = args.crops == "crop" and fits_in_memory(pixels, args.memory_gib)
    loader, (test_loader, *others), normalisation = (_in_memory if in_memory else _streaming)(args, parts, device)
    return Data(
        _mixed(args, loader, len(train), len(source.classes)),
        others[0] if others else None,
        test_loader,
        source.test,
        source.classes,
        normalisation,
        source.whites,
        (*source.notes, *_left_out(len(train), loader)),
        source.fingerprint,
    )


def _mixed(args: UserInput, loader: Loader, images: int, classes: int) -> Loader:
    """The loader of the training images, with what the settings do to its batches."""
    mixing = Mixing(args.cutout, args.mixup, args.cutmix)
    batch_size = training_batch(args.batch_size, images)
    return MixedLoader(loader, mixing, batch_size, classes, args.seed) if mixing else loader


def _left_out(images: int, loader: Loader) -> list[str]:
    left = images - loader.images
    return [f"of {images:,} training images, each epoch leaves {left:,} out, others each time: batches are full"] * (
        left > 0
    )


def class_count(args: UserInput) -> int:
    """The number of classes, without reading an image."""
    return sources.class_count(args.dataset, args.data_path, folder_options(args))


def training_count(args: UserInput) -> int:
    """The number of images that there are to train on, without reading one; `training_images` is at most this."""
    count = sources.training_count(args.dataset, args.data_path, folder_options(args))
    return count - math.ceil(args.validation_fraction * count)  # rounded as `train_test_split` does


def folder_options(args: UserInput) -> FolderOptions:
    """What the settings say of a folder of images.

    Raises:
        InputError: they say it of another data set.
    """
    options = FolderOptions(args.test_fraction, args.validation_folder, args.skip_bad_images)
    if args.dataset != "imagefolder" and options != FolderOptions(validation_folder=args.validation_folder):
        raise InputError(f"dataset: test_fraction and skip_bad_images are for imagefolder, and not for {args.dataset}")
    return options


def fits_in_memory(pixels: int, memory_gib: float) -> bool:
    """Whether so many pixels of images, all parts together, stay in memory."""
    return 3 * pixels <= memory_gib * 2**30


def centre_view(args: UserInput) -> Callable[[Image.Image], Image.Image]:
    """What makes an image s × s pixels in a test."""
    whole = args.crops == "crop"
    return centre_crop(args.image_size, None if whole else round(args.image_size * RESIZE_RATIO))


def load_test(
    args: UserInput,
    images: ImageSet,
    normalisation: Normalisation,
    device: torch.device,
    batch_size: int | None = None,
) -> OrderedLoader:
    """Images to be tested on alone, as the settings have a test see them; `batch_size` at once, or as many as a run."""
    batch_size = batch_size or evaluation_batch(args.batch_size, args.image_size, device)
    if args.crops == "crop" and fits_in_memory(len(images) * args.image_size**2, args.memory_gib):
        pixels, labels = decode(images, args.image_size), torch.from_numpy(images.labels)
        return PlainLoader(pixels.to(device), labels.to(device), batch_size, normalisation)
    return replace(_stream(args, images, normalisation, device), batch_size=batch_size)


def _train_and_validation(args: UserInput, source: Source) -> tuple[ImageSet, ImageSet | None]:
    if source.validation is not None and args.validation_fraction > 0.0:
        raise InputError(
            "validation_fraction: data_dir has a folder of validation images; take 0, or --no-validation_folder"
        )
    train, validation = split(source.train, args.validation_fraction, classes=source.classes)
    return limit(train, args.training_images), source.validation or validation


def _known_normalisation(args: UserInput) -> Normalisation | None:
    """The one that the settings name; None where it is to be measured."""
    if args.normalisation == "study":
        return Normalisation(*CIFAR10_STATISTICS)
    if args.normalisation == "measured":
        return None
    if args.crops == "resized_crop":
        return Normalisation(*IMAGENET_STATISTICS)
    return Normalisation(*CIFAR10_STATISTICS) if args.dataset == "cifar10" else None


# --------------------------------------------------------------------------------------------------- in memory


def _in_memory(args: UserInput, parts: Sequence[ImageSet], device: torch.device) -> Loaders:
    pixels = [decode(part, args.image_size) for part in parts]
    together = measured_together(args.image_size)
    normalisation = _known_normalisation(args) or measure_normalisation(pixels[0].split(together))
    train, *others = (
        PlainLoader(images.to(device), torch.from_numpy(part.labels).to(device), args.batch_size, normalisation)
        for part, images in zip(parts, pixels, strict=True)
    )
    batch_size = evaluation_batch(args.batch_size, args.image_size, device)
    others = [replace(loader, batch_size=batch_size) for loader in others]
    flip = args.dataset not in NOT_FLIPPED
    return AugmentedLoader.of(train, args.seed, flip, args.auto_augment), others, normalisation


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
    policy: str = "none"

    @classmethod
    def of(cls, plain: PlainLoader, seed: int, flip: bool, policy: str = "none") -> "AugmentedLoader":
        """The images of `plain`, padded once for all the crops to come."""
        batch_size = training_batch(plain.batch_size, plain.images)
        return cls(pad(plain.pixels), plain.labels, batch_size, plain.normalisation, seed, flip, policy)

    @property
    def images(self) -> int:
        return len(self) * self.batch_size

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        drawn = draw_crops(len(self.labels), self.seed, epoch, self.flip)
        order, top, left, flip = (part.to(self.pixels.device) for part in drawn)
        for share in shares(self.images, self.batch_size, first):
            pixels = crop_and_flip(self.pixels, order[share], top[share], left[share], flip[share])
            pixels = apply_policy(self.policy, pixels, share, self.seed, epoch)
            yield self.normalisation.apply(pixels), self.labels[order[share]]


def draw_crops(count: int, seed: int, epoch: int, flip: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An epoch's order of `count` images, and at each place in it where the crop begins and whether it is mirrored.

    Drawn on the CPU, a whole epoch at once: the same on every device. Gives order, top, left and flip, all (count,).
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(count, generator=generator)
    top, left = torch.randint(2 * CROP_PADDING + 1, (2, count), generator=generator)
    return order, top, left, torch.rand(count, generator=generator) < (0.5 if flip else 0.0)


def pad(pixels: Tensor) -> Tensor:
    """(n, s, s, 3) -> (n, s + 2p, s + 2p, 3) with black around the images, for all the crops to come."""
    return F.pad(pixels, (0, 0, *(CROP_PADDING,) * 4))


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
    plain = _stream(args, parts[0], Normalisation(*IMAGENET_STATISTICS), device)
    # where it is measured, one process reads the images for all
    normalisation = _known_normalisation(args) or on_main(_measure, plain, measured_together(args.image_size))
    plain = replace(plain, normalisation=normalisation)
    flip, batch_size = args.dataset not in NOT_FLIPPED, training_batch(args.batch_size, len(parts[0]))
    train: Loader
    if args.crops == "crop":
        train = CroppedStream(plain, batch_size, flip, args.auto_augment)
    else:
        crops = [v2.RandomResizedCrop(args.image_size), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
        crops += [POLICIES[args.auto_augment]()] if args.auto_augment != "none" else []
        train = replace(plain, transform=v2.Compose(crops), batch_size=batch_size, train=True)
    return train, [replace(plain, image_set=part) for part in parts[1:]], normalisation


def _stream(args: UserInput, images: ImageSet, normalisation: Normalisation, device: torch.device) -> StreamLoader:
    """Every image once, in order, as a test sees it."""
    return StreamLoader(
        image_set=images,
        transform=centre_view(args),
        batch_size=evaluation_batch(args.batch_size, args.image_size, device),
        normalisation=normalisation,
        seed=args.seed,
        train=False,
        workers=args.workers,
        device=device,
    )


@dataclass(frozen=True)
class CroppedStream:
    """As `AugmentedLoader`, the same batches bit for bit, of images that are read when their turn comes."""

    plain: StreamLoader
    batch_size: int
    flip: bool
    policy: str = "none"

    @property
    def images(self) -> int:
        return len(self) * self.batch_size

    def __len__(self) -> int:
        return len(self.plain.image_set) // self.batch_size

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        order, *drawn = draw_crops(len(self.plain.image_set), self.plain.seed, epoch, self.flip)
        parts = shares(self.images, self.batch_size, first)
        batches = self.plain.pixels([order[share].tolist() for share in parts])
        for share, (pixels, labels) in zip(parts, batches, strict=True):
            index = torch.arange(len(labels), device=pixels.device)
            crops = crop_and_flip(pad(pixels), index, *(part[share].to(pixels.device) for part in drawn))
            crops = apply_policy(self.policy, crops, share, self.plain.seed, epoch)
            yield self.plain.normalisation.apply(crops), labels


def _measure(plain: StreamLoader, together: int) -> Normalisation:
    """The statistics of the training images as a test would see them, `together` of them summed up at once."""
    count, batch = len(plain.image_set), min(MEASURED_BATCH, together)
    parts = [list(range(first, min(first + batch, count))) for first in range(0, count, batch)]
    bar = tqdm(plain.pixels(parts), "measuring the normalisation", len(parts), False, disable=hide_bar())
    return measure_normalisation(_gathered((pixels.cpu() for pixels, _ in bar), together))


def _gathered(batches: Iterable[Tensor], together: int) -> Iterator[Tensor]:
    """The same images, `together` of them in each tensor but the last; a multiple of the images of a batch."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= together:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)
