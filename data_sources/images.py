"""Reading an image file from anywhere, as a person sees it; what nothing good comes of is refused.

There is one reader, for training, test and prediction. It turns photographs as their EXIF data say, puts what is
transparent on white, converts CMYK and LAB by their profile, scales more than 8 bits, and takes an animation's first
picture.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image, PngImagePlugin
from torchvision.transforms import v2

from command_line.errors import InputError
from command_line.paths import printable
from data_sources.formats import IMAGE_FORMATS, format_of, unread
from data_sources.pixels import EACH_ITS_OWN, Whites, as_rgb

MOST_PIXELS = 2**26  # of an image file: half a GiB while it is decoded; ImageNet's largest has 61 million
MOST_ELONGATED = 100  # times as long as wide: the shorter side is resized to that of the network
MOST_JPEG_BYTES = 2**28  # of one that ends early and is looked at closely
JPEG_END = b"\xff\xd9"
NO_PICTURE = (b"", b"\x55" * 64, b"\xaa" * 64)  # what a decoder passes over after the last block, and only there


def quieten_pillow() -> None:
    """Pillow warns of palettes, sizes and tags, once for each in each worker; what matters of that is refused here."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


quieten_pillow()
# a text or a colour profile of 1 MiB is none of its limits' business here; all of a file's together stay at 64 MiB
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def read_image(path: str, whites: Whites = EACH_ITS_OWN, setting: str = "data_dir") -> Image.Image:
    """An image file in RGB with 8 bits, as a person sees it.

    Args:
        whites: what is white in images of more than 8 bits.
        setting: the one that named the file, for the message.

    Raises:
        InputError: it is no image, a damaged one, or one of a size or kind that is not taken; or it cannot be opened.
    """
    try:
        with open_image(path) as image:
            return as_rgb(load(image, path), whites)
    except Exception as error:  # a damaged file fails in whichever way its bytes happen to
        raise InputError(f"{setting}: {printable(path)} {_reason(path, error)}") from error


def open_image(path: str) -> Image.Image:
    """An image file whose pixels are not yet read.

    Raises:
        ValueError: it is no file, or of a size that is not taken; or whatever else its bytes lead to.
        OSError: it is not there, or must not be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file")  # such as a pipe, from which nothing would ever come
    image = Image.open(path, formats=IMAGE_FORMATS)
    shorter, longer = sorted(image.size)
    if shorter * longer > MOST_PIXELS or longer > MOST_ELONGATED * shorter:
        limits = f"at most {MOST_PIXELS:,} pixels, sides of 1:{MOST_ELONGATED}"
        raise ValueError(f"{image.width}×{image.height} pixels; takes {limits}")
    return image


def load(image: Image.Image, path: str) -> Image.Image:
    """The image with its pixels; where its file ends early without a pixel missing, too."""
    try:
        image.load()
        return image
    except OSError:
        if image.format not in ("JPEG", "MPO") or not ends_early(path):
            raise
        whole = _whole(path)
        if whole is None:
            raise
        return whole


def ends_early(path: str) -> bool:
    """Whether a JPEG file lacks the mark of its end."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return JPEG_END not in file.read()  # which bytes of another kind may follow


def _whole(path: str) -> Image.Image | None:
    """The picture of a JPEG file that ends early; None where a part of it is missing.

    Where blocks are missing, whatever follows is decoded as blocks: then different endings give different pictures.
    """
    if os.path.getsize(path) > MOST_JPEG_BYTES:
        return None
    content, pictures = Path(path).read_bytes().removesuffix(JPEG_END[:1]), []
    for ending in NO_PICTURE:
        picture = Image.open(io.BytesIO(content + ending + JPEG_END), formats=("JPEG",))
        picture.load()
        pictures.append(picture)
    first, *others = (picture.tobytes() for picture in pictures)
    return pictures[0] if all(other == first for other in others) else None


def is_bad(error: InputError) -> bool:
    """Whether an image was refused for what it is, and not for what the machine lacks; so that it may be skipped."""
    return not _is_want(error.__cause__)


def _is_want(error: BaseException | None) -> bool:
    """Whether memory, or the number of files that may be open at once, did not suffice for an image."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)


def _reason(path: str, error: Exception) -> str:
    told = f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if _is_want(error):
        return f"could not be read {told}"
    with suppress(OSError):  # it must not be read, as the error says itself
        name = format_of(path) if os.path.isfile(path) else None
        if name is not None and name not in IMAGE_FORMATS:
            return f"is {unread(name)}"
    return f"is no readable image {told}"


def centre_crop(side: int, before_the_crop: int | None = None) -> Callable[[Image.Image], Image.Image]:
    """Resize the shorter side (to `side`, if nothing else is said) and take the centre, `side` × `side` pixels."""
    return v2.Compose([v2.Resize(before_the_crop or side), v2.CenterCrop(side)])
