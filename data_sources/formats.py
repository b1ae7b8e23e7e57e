"""Formats of image files by their first bytes: those that are read here, and those that are told by name.

What a file is called says nothing about what it is; this is used where a name has no ending, and in messages.
"""

from pathlib import Path

# The formats that are decoded within this process, whatever a file's name says; others would start a program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
ENDINGS = frozenset(".jpg .jpeg .jpe .jfif .png .apng .ppm .pgm .pbm .pnm .pfm .bmp .tif .tiff .webp .gif".split())
UNREAD_ENDINGS = {
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".jxl": "JPEG XL",
    ".tga": "TGA",
    ".ico": "ICO",
    ".qoi": "QOI",
    ".psd": "PSD",
    ".svg": "SVG",
    ".pdf": "PDF",
    ".eps": "EPS",
    ".dng": "a camera's raw format",
    ".cr2": "a camera's raw format",
    ".nef": "a camera's raw format",
    ".arw": "a camera's raw format",
}
# (offset, bytes, format); of several that fit, the first
SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    *((0, b"P" + kind, "PPM") for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f", b"F")),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"qoif", "QOI"),
    (0, b"8BPS", "PSD"),
    (0, b"%!PS", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
)
READ_HERE = f"{', '.join(IMAGE_FORMATS[:-1])} and {IMAGE_FORMATS[-1]}"


def format_of(path: str) -> str | None:
    """What a file is by its first bytes, or a format without any by its ending; None where neither tells."""
    with open(path, "rb") as file:
        start = file.read(16)
    for offset, signature, name in SIGNATURES:
        if start[offset:].startswith(signature):
            return name
    return UNREAD_ENDINGS.get(Path(path).suffix.lower())


def unread(name: str) -> str:
    """`AVIF, which is not read here; convert it to PNG (…)`."""
    return f"{name}, which is not read here; convert it to PNG ({READ_HERE} are read)"
