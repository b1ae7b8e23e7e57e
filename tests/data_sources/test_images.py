"""Image files are read as a person sees them, or refused by name."""

import errno
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from image_kinds import COLOUR, KINDS, Kind, as_turned
from PIL import Image

from command_line.errors import InputError
from data_sources.formats import format_of
from data_sources.images import MOST_PIXELS, quieten_pillow, read_image
from data_sources.pixels import INTEGER, SIXTEEN, white_of
from data_sources.survey import survey, unreadable


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_is_read_as_a_person_sees_it(kind: Kind, tmp_path: Path) -> None:
    kind.write(tmp_path / kind.name)
    image = read_image(str(tmp_path / kind.name))
    assert image.mode == "RGB"
    difference = np.asarray(image).astype(int) - kind.seen
    assert abs(difference).max() <= kind.tolerance


def test_the_kinds_are_many_and_differ() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 60
    assert len({as_turned(tag).tobytes() + bytes(as_turned(tag).shape) for tag in range(1, 9)}) == 8


# The first bytes that these formats' definitions ask for
UNREAD = {
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\xff\x0a\0\0",
    "ICO": b"\0\0\1\0\1\0",
    "QOI": b"qoif\0\0\0\1",
    "PSD": b"8BPS\0\1",
    "PDF": b"%PDF-1.4",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0",
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_that_is_not_read_is_told_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(UNREAD[name])
    says = (
        f"a.png is {name}, which is not read here; convert it to PNG .JPEG, PNG, PPM, BMP, TIFF, WEBP and GIF are read"
    )
    with pytest.raises(InputError, match=says):
        read_image(str(tmp_path / "a.png"))


def test_targa_has_no_first_bytes_and_is_told_by_its_ending(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.tga")
    with pytest.raises(InputError, match=r"a.tga is TGA, which is not read here"):
        read_image(str(tmp_path / "a.tga"))


def test_what_pillow_writes_has_the_first_bytes_of_its_format(tmp_path: Path) -> None:
    for format in ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF"):
        Image.fromarray(COLOUR).save(tmp_path / "file", format)
        assert format_of(str(tmp_path / "file")) == format


def content(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, format, **options)
    return buffer.getvalue()


def wrong() -> dict[str, bytes]:
    """What is no whole picture."""
    buffers = {name: io.BytesIO() for name in ("below.tiff", "nan.tiff", "int.tiff", "ink.tiff")}
    Image.fromarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)).save(buffers["below.tiff"], "TIFF")
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(buffers["nan.tiff"], "TIFF")
    Image.fromarray(np.full((3, 4), -5, np.int32)).save(buffers["int.tiff"], "TIFF")
    Image.new("CMYK", (3, 4)).save(buffers["ink.tiff"], "TIFF", icc_profile=b"no profile at all")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpegs = {}
    for name, progressive in (("baseline", False), ("progressive", True)):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", progressive=progressive)
        jpegs |= {f"{name}_{cut}.jpg": buffer.getvalue()[:-cut] for cut in (4, 20, 1000)}
    return {
        "empty.png": b"",
        "text.png": b"no image",
        "half.png": content("PNG")[:60],
        **jpegs,
        **{name: buffer.getvalue() for name, buffer in buffers.items()},
    }


@pytest.mark.parametrize("name", wrong())
def test_what_is_no_whole_picture_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(wrong()[name])
    with pytest.raises(InputError, match=rf"^data_dir: \S*{name} is no readable image[^\n]*$"):
        read_image(str(tmp_path / name))


def test_size_and_shape_have_limits(tmp_path: Path) -> None:
    side = int(MOST_PIXELS**0.5) + 1
    for name, size in {"large.png": (side, side), "long.png": (1, 101)}.items():
        Image.new("1", size).save(tmp_path / name)
        with pytest.raises(InputError, match=f"{size[0]}×{size[1]} pixels; takes at most 67,108,864 pixels"):
            read_image(str(tmp_path / name))


def test_white_is_the_same_in_all_files_of_a_data_set(tmp_path: Path) -> None:
    for name, brightest in {"a": 300, "b": 4000}.items():
        Image.fromarray(np.full((2, 2), brightest, np.uint16)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    whites, line = survey(paths)
    assert whites == {SIXTEEN: 4095.0}
    assert "white is 4,095 in 16-bit images" in line
    assert [read_image(path, whites).getpixel((0, 0))[0] for path in paths] == [19, 249]  # 255 · 300 / 4095, …
    assert read_image(paths[0]).getpixel((0, 0))[0] == 150  # alone, of 9 bits: 255 · 300 / 511


@pytest.mark.parametrize(
    ("brightest", "white"), [(0, 255), (255, 255), (256, 511), (1023, 1023), (4000, 4095), (65535, 65535)]
)
def test_white_is_the_highest_number_of_as_many_bits(brightest: int, white: int) -> None:
    assert white_of(INTEGER, brightest) == white


def test_a_survey_counts_the_kinds(tmp_path: Path) -> None:
    for kind in KINDS:
        kind.write(tmp_path / kind.name)
    _, line = survey([str(tmp_path / kind.name) for kind in KINDS])
    for words in (
        r"11 transparent (on white)",
        r"28 turned as EXIF says",
        r"8 16-bit",
        r"2 floating-point",
        r"1 32-bit",
        r"3 whole in files that end early",
    ):
        assert words in line, line


def test_a_survey_of_plain_images_says_nothing(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert survey([str(tmp_path / "a.png")]) == ({}, "")


def test_what_cannot_be_read_is_found_beforehand(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    ((number, why),) = unreadable([str(tmp_path / "a.png"), str(tmp_path / "b.png")], {})
    assert number == 1
    assert "b.png is no readable image" in why


def test_an_image_is_not_skipped_for_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*given: object) -> None:
        raise MemoryError

    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr("data_sources.images.as_rgb", too_large)
    with pytest.raises(InputError, match="MemoryError"):
        unreadable([str(tmp_path / "a.png")], {})


def refuse_to_open(path: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file be opened no more; root may read whatever its mode is."""
    usual = open

    def opening(file: object, *given: object, **options: object) -> object:
        if file == path:
            raise OSError(number, os.strerror(number), path)
        return usual(file, *given, **options)

    monkeypatch.setattr("builtins.open", opening)


def test_a_file_that_must_not_be_opened_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(COLOUR).save(path)
    refuse_to_open(paths[1], errno.EACCES, monkeypatch)
    ((number, why),) = unreadable(paths, {})
    assert number == 1
    assert f"{paths[1]} is no readable image (PermissionError: " in why
    assert os.strerror(errno.EACCES) in why


def test_an_image_is_not_skipped_for_want_of_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(path)
    refuse_to_open(path, errno.EMFILE, monkeypatch)
    with pytest.raises(InputError, match=f"a.png could not be read .OSError: .*{os.strerror(errno.EMFILE)}"):
        unreadable([path], {})


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"a.png is no readable image .*{os.strerror(errno.ENOENT)}"):
        read_image(str(tmp_path / "a.png"))


def test_pillows_warnings_do_not_reach_the_terminal(tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == "bad_exif.png")
    kind.write(tmp_path / kind.name)
    heard = []
    for quieten in (lambda: None, quieten_pillow):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quieten()
            read_image(str(tmp_path / kind.name))
        heard.append(len(caught))
    assert heard == [1, 0]
