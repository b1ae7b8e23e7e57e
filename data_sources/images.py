"""Reading an image file from anywhere: what is no image, or one of a size that nothing good comes of, is refused."""

import os
from collections.abc import Callable

from PIL import Image
from torchvision.transforms import v2

from command_line.errors import InputError

MOST_PIXELS = 2**26  # of an image file: half a GiB while it is decoded; ImageNet's largest has 61 million
MOST_ELONGATED = 100  # times as long as wide: the shorter side is resized to that of the network
# The formats that are decoded within this process, whatever a file's name says; others would start a program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def read_image(path: str) -> Image.Image:
    """An image file in RGB with 8 bits.

    Raises:
        InputError: it is no image, a damaged one, or one of a size that is not taken.
    """
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


def centre_crop(side: int, before_the_crop: int | None = None) -> Callable[[Image.Image], Image.Image]:
    """Resize the shorter side (to `side`, if nothing else is said) and take the centre, `side` × `side` pixels."""
    return v2.Compose([v2.Resize(before_the_crop or side), v2.CenterCrop(side)])
