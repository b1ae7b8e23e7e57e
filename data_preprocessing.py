"""The data sets, their augmentation, and the loaders that hand out batches on the training device.

Small images live in memory as uint8, on the training device, and a whole batch is cropped, flipped and normalised
there by one gather. What does not fit streams through worker processes. Either way the order of the images and
every draw of the augmentation are a function of (seed, epoch) alone: neither the device, nor the number of workers,
nor a resumption changes them. Of several processes each gets its share of every batch.

Shapes: n images of a data set · b of a batch · s side in pixels · images are (n, s, s, 3) uint8 in memory,
and (b, 3, s, s) float32, normalised, channels last, as they are handed out.
"""

import math
import os
import shutil
import signal
import tarfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from acceleration.distributed import hide_bar, one_before_the_others, rank, size
from command_line.errors import InputError
from user_input import UserInput

CROP_PADDING = 4  # pixels around a small image before its random crop (study)
SMALL_IMAGE = 64  # pixels; larger images get ImageNet's augmentation and stream
RESIZE_RATIO = 256 / 224  # side to which a larger test image is resized, to the side of its centre crop
SPLIT_SEED = 0  # the same validation images whatever the seed of a run, so that no run trains on another's
# The study's values for CIFAR-10. Its standard deviations are means over the images' own, about 0.8 of the data
# set's; kept, since the first batch norm absorbs the factor.
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# of a batch of a test on a GPU, where a larger one takes no longer: 1024 images of CIFAR; it changes no figure
TEST_BATCH_PIXELS = 2**20
MOST_PIXELS = 2**26  # of an image file: half a GiB while it is decoded; ImageNet's largest has 61 million
MOST_ELONGATED = 100  # times as long as wide: the shorter side is resized to that of the network
# The formats that are decoded within this process, whatever a file's name says; others would start a program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

Batch = tuple[Tensor, Tensor]


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


@lru_cache
def _on_device(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) there; kept, since a transfer per batch would make a GPU wait."""
    return torch.tensor(normalisation.mean, device=device), torch.tensor(normalisation.std, device=device)


class Loader(Protocol):
    """What training and test ask of their data: `images` images in `len(loader)` batches, of all processes together."""

    @property
    def images(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Images (b, 3, s, s) and labels (b,) of an epoch on the device, from batch number `first` on.

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


@dataclass(frozen=True)
class Data:
    """A data set, ready to be trained on."""

    train: Loader
    validation: OrderedLoader | None
    test: OrderedLoader
    classes: tuple[str, ...]
    normalisation: Normalisation


@dataclass(frozen=True)
class ImageSet:
    """Where the images of a data set come from: `read(i)` gives image i of label `labels[i]`."""

    read: Callable[[int], Image.Image]
    labels: np.ndarray  # (n,) int64

    def part(self, index: np.ndarray) -> "ImageSet":
        return ImageSet(partial(_read_part, self.read, index), self.labels[index])


Loaders = tuple[Loader, Sequence[OrderedLoader], Normalisation]  # of the training images, of the others


def load_data(args: UserInput, device: torch.device) -> Data:
    """The data set that the settings name.

    Raises:
        InputError: files are missing, damaged or do not agree; nothing has been written but a download.
    """
    with one_before_the_others():
        train, test, classes = _SOURCES[args.dataset](args)
    train, validation = _split(train, args.validation_fraction)
    train = _limit(train, args.training_images)
    _check_shares(args, len(train.labels))
    fits = _fits_in_memory(args, len(train.labels) + len(test.labels))
    parts = [part for part in (train, test, validation) if part is not None]
    prepare = _in_memory if fits else _streaming
    loader, (test_loader, *validation_loader), normalisation = prepare(args, parts, device)
    return Data(loader, validation_loader[0] if validation else None, test_loader, tuple(classes), normalisation)


def _check_shares(args: UserInput, images: int) -> None:
    if args.batch_size % size():
        raise InputError(f"batch_size: {args.batch_size} cannot be shared out evenly among {size()} processes")
    least = size() if args.sync_batch_norm and size() > 1 else 2 * size()
    if images < least:
        raise InputError(f"data_dir: {images} training images are too few; batch norm needs two at least")
    if args.batch_size < least:
        raise InputError(
            f"batch_size: {args.batch_size} leaves one image for each of {size()} processes, and batch norm needs two; "
            f"take {least} at least, or sync_batch_norm"
        )


def _training_batch(batch_size: int, images: int) -> int:
    """Images in a training step: `batch_size`, or as many as there are and can be shared out evenly."""
    return min(batch_size, images // size() * size())


def shares(count: int, batch_size: int, first: int = 0) -> list[slice]:
    """This process's part of each batch of `count` images, from batch number `first` on.

    Every `size()`-th image is a process's own: as many in each where the batch is full, or one less in some.
    """
    starts = range(first * batch_size, count, batch_size)
    return [slice(start + rank(), min(start + batch_size, count), size()) for start in starts]


def class_count(args: UserInput) -> int:
    """The number of classes, without reading an image."""
    counts = {"cifar10": 10, "cifar100": 100, "digits": 10}
    return counts.get(args.dataset) or len(_image_folder(args.data_path / "train").classes)


def training_count(args: UserInput) -> int:
    """The number of images that there are to train on, without reading one; `training_images` is at most this."""
    counts = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1437}
    count = counts.get(args.dataset) or len(_image_folder(args.data_path / "train").samples)
    return count - math.ceil(args.validation_fraction * count)  # rounded as `train_test_split` does


# ------------------------------------------------------------------------------------------------- the sources


def _cifar(args: UserInput, kind: type[CIFAR10]) -> tuple[ImageSet, ImageSet, list[str]]:
    archive, had_folder = args.data_path / kind.filename, args.data_path.exists()
    try:
        parts = [kind(str(args.data_path), train=train, download=True) for train in (True, False)]
    except (urllib.error.URLError, tarfile.TarError, EOFError, zlib.error, RuntimeError, OSError) as error:
        state = "is truncated or damaged, and" if archive.is_file() else "is not there, and"
        if not had_folder:
            shutil.rmtree(args.data_path, ignore_errors=True)  # what the failed download left
        raise InputError(
            f"dataset: {archive} {state} {args.dataset} could not be downloaded ({error}); put {kind.filename} from "
            f"{kind.url} into {args.data_path}, or try --dataset digits, which needs no download"
        ) from error
    train, test = (ImageSet(partial(_first, part), np.asarray(part.targets)) for part in parts)
    return train, test, parts[0].classes


def _image_folders(args: UserInput) -> tuple[ImageSet, ImageSet, list[str]]:
    train, test = (_image_folder(args.data_path / part) for part in ("train", "test"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(
            f"data_dir: the classes in {args.data_path}/train and /test differ ({', '.join(odd[:5])} is in one only)"
        )
    parts = [ImageSet(partial(_first, part), np.asarray(part.targets)) for part in (train, test)]
    # the files lie class by class, and CIFAR-10's do not: a network tested in training mode would see single classes
    return parts[0], parts[1].part(_shuffled(parts[1])), train.classes


def _image_folder(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(
            f"data_dir: there is no folder {folder}; imagefolder takes a folder with train/<class>/ and test/<class>/"
        )
    try:
        return ImageFolder(str(folder), loader=_read_image)
    except (
        FileNotFoundError,
        OSError,
    ) as error:  # no class folder, or one without an image: the message names it
        raise InputError(f"data_dir: {folder}: {error}") from error


def _digits(args: UserInput) -> tuple[ImageSet, ImageSet, list[str]]:
    from sklearn.datasets import load_digits  # here, since it takes a second to import, and most runs do without

    digits = load_digits()
    everything = ImageSet(
        partial(_digit, (digits.images * (255 / 16)).round().astype(np.uint8)), digits.target.astype(np.int64)
    )
    train, test = _split(everything, 0.2)
    assert test is not None
    return train, test, [str(name) for name in digits.target_names]


_SOURCES: dict[str, Callable[[UserInput], tuple[ImageSet, ImageSet, list[str]]]] = {
    "cifar10": partial(_cifar, kind=CIFAR10),
    "cifar100": partial(_cifar, kind=CIFAR100),
    "imagefolder": _image_folders,
    "digits": _digits,
}


# These are functions of the module, and not closures, so that a loader's worker can be sent them on every system.
def _read_part(read: Callable[[int], Image.Image], index: np.ndarray, i: int) -> Image.Image:
    return read(int(index[i]))


def _digit(images: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(images[i]).convert("RGB")


def _first(dataset: Dataset, i: int) -> Image.Image:
    return dataset[i][0]


def _read_image(path: str) -> Image.Image:
    try:
        if not os.path.isfile(path):
            raise ValueError("it is no file")  # such as a pipe, from which nothing would ever come
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            shorter, longer = sorted(image.size)
            if shorter * longer > MOST_PIXELS or longer > MOST_ELONGATED * shorter:
                limits = f"at most {MOST_PIXELS:,} pixels, sides of 1:{MOST_ELONGATED}"
                raise ValueError(f"{image.width}×{image.height} pixels; takes {limits}")
            return image.convert("RGB")
    except Exception as error:  # a damaged file fails in whichever way its bytes happen to
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"data_dir: {path} is no readable image ({type(error).__name__}: {reason})") from error


def _split(image_set: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """Hold back a stratified share of the images, the same ones every time."""
    if fraction == 0.0:
        return image_set, None
    from sklearn.model_selection import train_test_split  # as in `_digits`

    everything = np.arange(len(image_set.labels))
    try:
        kept, held_back = train_test_split(
            everything, test_size=fraction, stratify=image_set.labels, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(f"validation_fraction: {fraction} cannot be split off by class: {error}") from error
    return image_set.part(kept), image_set.part(held_back)


def _limit(image_set: ImageSet, count: int | None) -> ImageSet:
    """The first `count` images of one shuffle of them all: fewer are a part of more."""
    if count is None:
        return image_set
    if count > len(image_set.labels):
        raise InputError(f"training_images: {count} is not allowed; there are {len(image_set.labels)} to train on")
    return image_set.part(_shuffled(image_set)[:count])


def _shuffled(image_set: ImageSet) -> np.ndarray:
    """One order of all the images, the same every time."""
    return np.random.default_rng(SPLIT_SEED).permutation(len(image_set.labels))


def _fits_in_memory(args: UserInput, images: int) -> bool:
    size = images * args.image_size**2 * 3
    return args.image_size <= SMALL_IMAGE and size <= args.memory_gib * 2**30


def centre_view(args: UserInput, images: int) -> Callable[[Image.Image], Image.Image]:
    """What makes an image s × s pixels in the test of a run with that many images of all kinds."""
    side = args.image_size
    return _fitting(side) if _fits_in_memory(args, images) else _fitting(side, round(side * RESIZE_RATIO))


def _flips(args: UserInput) -> bool:
    return args.dataset != "digits"  # a mirrored digit is no digit


# --------------------------------------------------------------------------------------------------- in memory


def _in_memory(args: UserInput, parts: Sequence[ImageSet], device: torch.device) -> Loaders:
    pixels = [_decode(part, args.image_size) for part in parts]
    study = args.normalisation == "study" or (args.normalisation == "auto" and args.dataset == "cifar10")
    normalisation = Normalisation(*CIFAR10_STATISTICS) if study else measure_normalisation(pixels[0])
    train, *others = (
        PlainLoader(images.to(device), torch.from_numpy(part.labels).to(device), args.batch_size, normalisation)
        for part, images in zip(parts, pixels, strict=True)
    )
    batch_size = evaluation_batch(args, device)
    others = [replace(loader, batch_size=batch_size) for loader in others]
    return AugmentedLoader.of(train, args.seed, _flips(args)), others, normalisation


def evaluation_batch(args: UserInput, device: torch.device) -> int:
    """Images of a test's batch: on a GPU as many as keep it busy, else as many as in training."""
    if device.type == "cpu":
        return args.batch_size
    return max(args.batch_size, TEST_BATCH_PIXELS // args.image_size**2 // size() * size())


def _decode(image_set: ImageSet, side: int) -> Tensor:
    """All the images as (n, side, side, 3) uint8; those of another size are resized and their centre taken."""
    fit = _fitting(side)

    def read(i: int) -> np.ndarray:
        image = image_set.read(i)
        return np.asarray(image if image.size == (side, side) else fit(image))

    count = len(image_set.labels)
    images = np.empty((count, side, side, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding a JPEG releases the interpreter's lock
        rows = pool.map(read, range(count))
        for i, row in enumerate(tqdm(rows, "reading images", count, leave=False, disable=hide_bar(), unit="img")):
            images[i] = row
    return torch.from_numpy(images)


def _fitting(side: int, before_the_crop: int | None = None) -> Callable[[Image.Image], Image.Image]:
    """Resize the shorter side (to `side`, if nothing else is said) and take the centre."""
    return v2.Compose([v2.Resize(before_the_crop or side), v2.CenterCrop(side)])


def measure_normalisation(images: Tensor) -> Normalisation:
    """Mean and standard deviation over all the pixels of (n, s, s, 3) uint8 images, channel by channel."""
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for part in images.split(4096):
        values = part.reshape(-1, 3).to(torch.float64) / 255.0
        total, squares, count = total + values.sum(0), squares + values.square().sum(0), count + len(values)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1 / 255**2).sqrt()  # a constant channel stays finite
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


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
        batch_size = _training_batch(plain.batch_size, plain.images)
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


def mix(*numbers: int) -> int:
    """One well-spread seed out of several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


# --------------------------------------------------------------------------------------------------- streaming


def _streaming(args: UserInput, parts: Sequence[ImageSet], device: torch.device) -> Loaders:
    if args.normalisation == "measured":
        raise InputError("normalisation: measured needs images that fit into memory; take auto, or raise memory_gib")
    study, side = args.normalisation == "study", args.image_size
    normalisation = Normalisation(*(CIFAR10_STATISTICS if study else IMAGENET_STATISTICS))
    augment = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(0.5 if _flips(args) else 0.0)])
    centre = _fitting(side, round(side * RESIZE_RATIO))
    train = StreamLoader(
        image_set=parts[0],
        transform=augment,
        batch_size=_training_batch(args.batch_size, len(parts[0].labels)),
        normalisation=normalisation,
        seed=args.seed,
        train=True,
        workers=args.workers,
        device=device,
    )
    batch_size = evaluation_batch(args, device)
    others = [
        replace(train, image_set=part, transform=centre, batch_size=batch_size, train=False) for part in parts[1:]
    ]
    return train, others, normalisation


@dataclass(frozen=True)
class StreamLoader:
    """Batches read from disk by worker processes, for images that do not fit in memory."""

    image_set: ImageSet
    transform: Callable[[Image.Image], Image.Image]
    batch_size: int
    normalisation: Normalisation
    seed: int
    train: bool
    workers: int
    device: torch.device

    @property
    def images(self) -> int:
        count = len(self.image_set.labels)
        return len(self) * self.batch_size if self.train else count

    def __len__(self) -> int:
        count = len(self.image_set.labels)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        order = self._order(epoch)
        loader = DataLoader(
            _Stream(self.image_set, self.transform, self.seed, epoch),
            batch_sampler=[order[share] for share in shares(self.images, self.batch_size, first)],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_main,
        )
        try:
            for pixels, labels in loader:
                images = self.normalisation.apply(pixels.to(self.device, non_blocking=True))
                yield images, labels.to(self.device, non_blocking=True)
        except InputError as error:  # a worker's error comes with its traceback: the last line is the message
            raise InputError(
                str(error).strip().splitlines()[-1].removeprefix("command_line.errors.InputError: ")
            ) from None

    def reordered(self, order: Tensor, batch_size: int) -> "StreamLoader":
        return replace(self, image_set=self.image_set.part(order.numpy()), batch_size=batch_size)

    def _order(self, epoch: int) -> list[int]:
        count = len(self.image_set.labels)
        if not self.train:
            return list(range(count))
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(count, generator=generator).tolist()


class _Stream(Dataset):
    """Image i of an epoch as (s, s, 3) uint8, its augmentation drawn from (seed, epoch, i) whoever reads it."""

    def __init__(self, image_set: ImageSet, transform: Callable, seed: int, epoch: int) -> None:
        self.image_set, self.transform, self.seed, self.epoch = image_set, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.image_set.labels)

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
