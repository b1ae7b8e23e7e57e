"""Image files of every kind, made with Pillow and NumPy, each with what a person sees of it."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

ROWS, COLUMNS = 16, 24
EXACT, LOSSY = 0, 6  # how far a pixel may be from what it should be

# Flat blocks, which JPEG keeps, no two corners alike, so that a turned picture is told from an upright one
BLOCKS = np.array([[20, 90, 160], [230, 60, 120]], np.uint8)
GREY = np.kron(BLOCKS, np.ones((8, 8), np.uint8))  # (16, 24)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)
BLACK = np.zeros((ROWS, COLUMNS), np.uint8)
RIGHT = np.arange(COLUMNS)[None, :].repeat(ROWS, 0) >= COLUMNS // 2  # the right half


def rgb(grey: np.ndarray) -> np.ndarray:
    """(h, w) -> (h, w, 3)."""
    return np.stack([grey] * 3, -1)


@dataclass(frozen=True)
class Kind:
    """A file's name, how it is written, and what is seen in it."""

    name: str
    write: Callable[[Path], None]
    seen: np.ndarray  # (h, w, 3) uint8
    tolerance: int = EXACT


def saved(name: str, image: Image.Image, seen: np.ndarray, tolerance: int = EXACT, **options: Any) -> Kind:
    return Kind(name, lambda path: image.save(path, **options), seen, tolerance)


def _bytes(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cut(name: str, by: int, **options: Any) -> Kind:
    """A JPEG whose last bytes are missing."""
    content = _bytes(Image.fromarray(COLOUR), "JPEG", quality=100, subsampling=0, **options)[:-by]
    return Kind(name, lambda path: _write(path, content), COLOUR, LOSSY)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def cmyk_profile() -> bytes:
    """A colour profile in which cyan is a middle grey (L* 50), black is black and other inks are none."""
    levels = [0 if corner & 1 else 128 if corner & 8 else 255 for corner in range(16)]  # of C, M, Y, K by their bits
    corners = b"".join(bytes([level, 128, 128]) for level in levels)  # Lab
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + corners + 3 * ramp
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"A2B0": table, b"desc": text, b"wtpt": white, b"cprt": b"text\0\0\0\0x\0\0\0"}
    body, entries, offset = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + struct.pack(">I", len(tags)) + entries + body


def plain() -> list[Kind]:
    """Colour, grey, black and white, palettes, in every format."""
    colour, grey, two = Image.fromarray(COLOUR), Image.fromarray(GREY), Image.fromarray(GREY > 100)
    black_and_white = rgb(np.where(GREY > 100, 255, 0).astype(np.uint8))
    kinds = [saved(f"colour.{ending}", colour, COLOUR) for ending in ("png", "bmp", "ppm", "tiff")]
    kinds += [saved(f"grey.{ending}", grey, rgb(GREY)) for ending in ("png", "bmp", "pgm", "tiff", "gif")]
    kinds += [saved(f"two.{ending}", two, black_and_white) for ending in ("png", "bmp", "pbm", "tiff")]
    kinds += [
        saved(f"{how}.tif", colour, COLOUR, compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    ]
    palette = colour.quantize(16)
    kinds += [
        saved(f"palette.{ending}", palette, np.asarray(palette.convert("RGB"))) for ending in ("png", "bmp", "gif")
    ]
    kinds += [
        saved("colour.webp", colour, COLOUR, lossless=True),
        saved("fax.tif", two, black_and_white, compression="group4"),
        saved("colour.jpg", colour, COLOUR, LOSSY, quality=100, subsampling=0),
        saved("progressive.jpeg", colour, COLOUR, LOSSY, quality=100, subsampling=0, progressive=True),
        saved("grey.jfif", grey, rgb(GREY), LOSSY, quality=100, format="JPEG"),
    ]
    return kinds


def animated() -> list[Kind]:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    options: dict[str, Any] = {"save_all": True, "append_images": [second], "duration": 100}
    grey = Image.fromarray(GREY)
    return [
        saved("frames.gif", grey, rgb(GREY), **(options | {"append_images": [Image.fromarray(255 - GREY)]})),
        saved("frames.png", first, COLOUR, **options),
        saved("frames.webp", first, COLOUR, lossless=True, **options),
        saved("pages.tiff", first, COLOUR, save_all=True, append_images=[second]),
    ]


def transparent() -> list[Kind]:
    """The right half is opaque; what lies under the left one is black, and white is seen."""
    alpha = np.where(RIGHT, 255, 0).astype(np.uint8)
    half = np.where(np.arange(ROWS)[:, None] < 8, alpha, alpha // 2 + 51).astype(np.uint8)  # 51/255 is a fifth
    under = np.where(RIGHT[..., None], COLOUR, 0).astype(np.uint8)
    on_white = np.where(RIGHT[..., None], COLOUR, 255)
    share = half[..., None] / 255
    blended = np.rint(under * share + 255 * (1 - share)).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([under, alpha]))
    glyph = np.where(RIGHT, GREY, 0).astype(np.uint8)
    grey_on_white = rgb(np.where(RIGHT, GREY, 255).astype(np.uint8))
    indexed = Image.fromarray(np.where(RIGHT, 1, 0).astype(np.uint8), "L").convert("P")
    indexed.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    two_colours = np.where(RIGHT[..., None], (200, 100, 50), 255).astype(np.uint8)
    kinds = [saved(f"alpha.{ending}", rgba, on_white) for ending in ("png", "tiff")]
    return [
        *kinds,
        saved("alpha.webp", rgba, on_white, lossless=True, exact=True),
        saved("half.png", Image.fromarray(np.dstack([under, half])), blended, 1),
        saved("grey_alpha.png", Image.fromarray(np.dstack([glyph, alpha])), grey_on_white),
        saved("key.png", Image.fromarray(under), on_white, transparency=(0, 0, 0)),
        saved("grey_key.png", Image.fromarray(glyph), grey_on_white, transparency=0),
        saved("index.png", indexed, two_colours, transparency=0),
        saved("indices.png", indexed, two_colours, transparency=bytes([0, 255])),
        saved("index.gif", indexed, two_colours, transparency=0),
    ]


def turned() -> list[Kind]:
    """Every orientation of EXIF in every format that has it."""
    kinds = []
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        image, seen = Image.fromarray(COLOUR), as_turned(tag)
        kinds += [
            saved(f"turned{tag}.jpg", image, seen, LOSSY, exif=exif, quality=100, subsampling=0),
            saved(f"turned{tag}.png", image, seen, exif=exif),
            saved(f"turned{tag}.webp", image, seen, exif=exif, lossless=True),
            saved(f"turned{tag}.tiff", image, seen, exif=exif),
        ]
    return kinds


def as_turned(tag: int) -> np.ndarray:
    """What is seen of a file with that orientation: EXIF says on which side its first row and first column are."""
    rows_are_columns = tag >= 5
    picture = COLOUR.swapaxes(0, 1) if rows_are_columns else COLOUR
    first_row_at_the_end = tag in (3, 4)  # bottom
    first_column_at_the_end = tag in (2, 3)  # right
    if rows_are_columns:
        first_row_at_the_end, first_column_at_the_end = tag in (7, 8), tag in (6, 7)
    picture = picture[::-1] if first_row_at_the_end else picture
    return picture[:, ::-1] if first_column_at_the_end else picture


def deep() -> list[Kind]:
    """More than 8 bits; white is the highest number of as many bits as the brightest takes, as in each data set."""
    steps = GREY.astype(np.float64) / 255
    steps[0, 0] = 1.0  # the brightest
    seen = rgb(np.rint(255 * steps).astype(np.uint8))

    def of(highest: int, dtype: type) -> Image.Image:
        return Image.fromarray(np.rint(steps * highest).astype(dtype))

    keyed = np.where(RIGHT, np.rint(steps * 65535), 7).astype(np.uint16)
    return [
        saved("16.png", of(65535, np.uint16), seen),
        saved("12_in_16.png", of(4095, np.uint16), seen, 1),
        saved("16.tiff", of(65535, np.uint16), seen),
        saved("12_in_16.tiff", of(4095, np.uint16), seen, 1),
        saved("16.pgm", of(65535, np.uint16), seen),
        Kind("white_is_zero.tiff", lambda path: _write_inverted_tiff(path, np.rint((1 - steps) * 65535)), seen, 1),
        Kind("10.pgm", lambda path: _write_pgm(path, np.rint(steps * 1023), 1023), seen, 1),
        saved("20_in_32.tiff", of(2**20 - 1, np.int32), seen),
        saved("float.tiff", Image.fromarray(steps.astype(np.float32)), seen),
        saved("float_255.tiff", Image.fromarray((255 * steps).astype(np.float32)), seen),
        saved(
            "16_key.png",
            Image.fromarray(keyed),
            np.where(RIGHT[..., None], seen, 255).astype(np.uint8),
            1,
            transparency=7,
        ),
    ]


def _write_inverted_tiff(path: Path, values: np.ndarray) -> None:
    """16 bits, of which 0 is white: width, height, bits, compression, photometric, strip, samples, rows, bytes."""
    content = values.astype("<u2").tobytes()
    tags = [(256, COLUMNS), (257, ROWS), (258, 16), (259, 1), (262, 0), (273, 8), (277, 1), (278, ROWS)]
    tags.append((279, len(content)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    path.write_bytes(head + content + struct.pack("<H", len(tags)) + entries + bytes(4))


def _write_pgm(path: Path, values: np.ndarray, highest: int) -> None:
    path.write_bytes(f"P5 {COLUMNS} {ROWS} {highest}\n".encode() + values.astype(">u2").tobytes())


def coloured() -> list[Kind]:
    """Other colour spaces."""
    half = np.where(RIGHT, 255, 0).astype(np.uint8)
    black, cyan = (
        Image.merge("CMYK", [Image.fromarray(part) for part in inks])
        for inks in ((BLACK, BLACK, BLACK, half), (half, BLACK, BLACK, BLACK))
    )
    lab = Image.merge("LAB", [Image.fromarray(part) for part in (255 - half // 255 * 127, BLACK + 128, BLACK + 128)])
    middle = rgb(np.where(RIGHT, 119, 255).astype(np.uint8))  # L* 50 in sRGB
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        saved("ink.tiff", black, rgb(255 - half)),
        saved("ink.jpg", black, rgb(255 - half), LOSSY, quality=100),
        saved("ink_with_profile.tiff", cyan, middle, 2, icc_profile=cmyk_profile()),
        saved("ink_with_profile.jpg", cyan, middle, LOSSY, quality=100, icc_profile=cmyk_profile()),
        saved("lab.tiff", lab, middle, 2),
        saved("srgb.png", Image.fromarray(COLOUR), COLOUR, icc_profile=srgb),
    ]


def odd() -> list[Kind]:
    """Whole pictures in files that something is wrong with."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2**21, zip=True)
    colour = Image.fromarray(COLOUR)
    return [
        cut("cut1.jpg", 1),
        cut("cut2.jpg", 2),
        cut("cut2_progressive.jpg", 2, progressive=True),
        Kind(
            "more.jpg",
            lambda path: _write(path, _bytes(colour, "JPEG", quality=100, subsampling=0) + bytes(9)),
            COLOUR,
            LOSSY,
        ),
        saved("text.png", colour, COLOUR, pnginfo=text),
        saved("profile.png", colour, COLOUR, icc_profile=bytes(2**21)),
        saved("bad_exif.png", colour, COLOUR, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        Kind("is_a_png.jpg", lambda path: colour.save(path, "PNG"), COLOUR),
        Kind("no_ending", lambda path: colour.save(path, "PNG"), COLOUR),
    ]


KINDS = [*plain(), *animated(), *transparent(), *turned(), *deep(), *coloured(), *odd()]
