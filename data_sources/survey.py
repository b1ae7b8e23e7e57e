"""A look at the files of a data set before they are used: of which kinds they are, and which cannot be read."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from acceleration.distributed import hide_bar
from command_line.errors import InputError
from data_sources.images import ends_early, is_bad, load, open_image, read_image
from data_sources.pixels import Whites, brightest, deep_kind, orientation, white_of

MOST_LOOKED_AT = 20_000  # of a larger set, so many are looked at, spread evenly: a second for 10,000 or so
GREY = ("1", "L", "LA")
Result = TypeVar("Result")
Look = tuple[list[str], dict[str, float]]  # what is said of a file, and the brightest pixel by its deep kind


def survey(paths: Sequence[str]) -> tuple[dict[str, float], str]:
    """What is white in the images of more than 8 bits, and a line on the kinds of images; empty where all are plain."""
    step = -(-len(paths) // MOST_LOOKED_AT)
    looked_at = paths[:: max(1, step)]
    kinds: Counter[str] = Counter()
    peaks: dict[str, float] = {}
    for said, peak in _each(look, looked_at, "looking at the files"):
        kinds.update(said)
        for kind, value in peak.items():
            peaks[kind] = max(value, peaks.get(kind, 0.0))
    whites = {kind: white_of(kind, peak) for kind, peak in peaks.items()}
    words = [f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])]
    levels = "".join(f"; white is {white:,.0f} in {kind} images" for kind, white in whites.items())
    among = f" of {len(looked_at):,} looked at" if step > 1 else ""
    return whites, f"images{among}: {', '.join(words)}{levels}" if words else ""


def look(path: str) -> Look:
    """What there is to say of a file; nothing of one that cannot be read, which is refused when it is."""
    try:
        with open_image(path) as image:
            kind = deep_kind(image)
            said = ["grey"] if image.mode in GREY or kind else []
            said += [kind] if kind else []
            said += ["transparent (on white)"] if image.has_transparency_data else []
            if image.format != "PNG" or {"exif", "Raw profile type exif"} & set(image.info):  # it would be decoded
                said += ["turned as EXIF says"] if orientation(image) != 1 else []
            if image.format == "JPEG" and ends_early(path):
                load(image, path)
                said.append("whole in files that end early")
            return said, {kind: brightest(load(image, path))} if kind else {}
    except Exception:
        return [], {}


def unreadable(paths: Sequence[str], whites: Whites) -> list[tuple[int, str]]:
    """The numbers of those files that cannot be read, and why; every one is decoded."""

    def complaint(path: str) -> str | None:
        try:
            read_image(path, whites)
        except InputError as error:
            if not is_bad(error):
                raise
            return str(error)
        return None

    found = enumerate(_each(complaint, paths, "reading every image"))
    return [(number, why) for number, why in found if why is not None]


def _each(function: Callable[[str], Result], paths: Sequence[str], words: str) -> Iterable[Result]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        yield from tqdm(pool.map(function, paths), words, len(paths), leave=False, disable=hide_bar(), unit="img")
