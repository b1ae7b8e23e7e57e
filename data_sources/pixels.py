"""Pixels of any kind as RGB with 8 bits: depth, orientation, transparency, colour space.

Images of more than 8 bits say how many they use in no reliable way: 12 bits are stored in 16, and 32 hold anything. So
white is the highest number of as many bits as the brightest pixel takes, over all the files of a data set of that kind.
"""

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms

SIXTEEN, INTEGER, FLOATING = "16-bit", "32-bit", "floating-point"  # kinds of images with more than 8 bits
Whites = Mapping[str, float]  # what is white in each of these kinds
EACH_ITS_OWN: Whites = {}  # by the brightest pixel of the image itself
ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106  # tags of EXIF and of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_rgb(image: Image.Image, whites: Whites = EACH_ITS_OWN) -> Image.Image:
    """An image whose pixels are loaded, of any mode, as people see it.

    Raises:
        ValueError: its values or colours cannot be made such, and why.
    """
    turn = TURNS.get(orientation(image))
    if deep_kind(image):
        image = _eight_bits(image, whites)
    elif image.mode in ("CMYK", "LAB"):
        image = _by_profile(image)
    elif image.has_transparency_data:
        image = _on_white(image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """How EXIF says that the camera was held; 1, upright, where it says nothing that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data fail in whichever way their bytes happen to, and the picture is whole
        return 1


# ------------------------------------------------------------------------------------------------------- depth


def deep_kind(image: Image.Image) -> str | None:
    """The kind of an image with more than 8 bits; None for others."""
    if image.mode == "F":
        return FLOATING
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return SIXTEEN
    return INTEGER if image.mode.startswith("I") else None


def brightest(image: Image.Image) -> float:
    """The highest value of a deep image; 0 where none is a number."""
    return float(np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0).max(initial=0.0))


def white_of(kind: str, brightest: float) -> float:
    """What is white where the brightest pixel of that kind has that value: 255, 1023, 4095 …; of numbers 0..1, 1."""
    if kind == FLOATING and brightest <= 1.0:
        return 1.0
    return 2.0 ** max(8, math.ceil(math.log2(brightest + 1.0))) - 1.0


def _eight_bits(image: Image.Image, whites: Whites) -> Image.Image:
    kind = deep_kind(image)
    assert kind is not None
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0.0:
        raise ValueError(f"{kind} values below 0, or none; takes grey from black, 0, to white")
    if image.format == "PPM" and kind == SIXTEEN:
        white = 65535.0  # to which Pillow scales what the file says is its highest
    else:
        white = whites.get(kind) or white_of(kind, brightest(image))
    shares = (values / white).clip(0.0, 1.0)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # of TIFF: white is zero
        shares = 1.0 - shares
    if type(image.info.get("transparency")) is int:
        shares[values == image.info["transparency"]] = 1.0
    return Image.fromarray((255.0 * shares).round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ colour


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _by_profile(image: Image.Image) -> Image.Image:
    """CMYK by the profile in the file, or as Pillow does without one; LAB by its definition."""
    srgb, profile = ImageCms.createProfile("sRGB"), image.info.get("icc_profile")
    if image.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    else:
        return image
    converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert converted is not None  # None is for what is converted in place
    return converted
