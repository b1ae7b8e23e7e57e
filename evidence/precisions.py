"""What the precision of the arithmetic changes: runs that were made in several, paired by seed."""

import itertools
from collections.abc import Iterator

from evidence.analysis import Network
from evidence.contrasts import estimate
from evidence.logs import Chapter
from evidence.predictions import TOP1
from evidence.questions import EVALUATION
from evidence.tables import interval, mean_and_deviation, probability, signed, table

ENDPOINTS = {"test": TOP1[EVALUATION], "training": "train_top1"}


def text(chapters: list[Chapter]) -> str:
    """A line for each run and endpoint; nothing where no run was made in two precisions."""
    parts = []
    for first, second in itertools.combinations(chapters, 2):
        if _alike(first) == _alike(second) and (rows := list(_rows(first, second))):
            one, other = first.conditions.precision, second.conditions.precision
            head = ["run", "top-1 (%)", one, other, f"{one} − {other}", "95 % interval", "p"]
            parts.append(f"{first.conditions.data}, {first.device}, after the last epoch:\n\n{table(head, rows)}")
    return "\n".join(["## The same runs in two precisions\n", *parts]) if parts else ""


def _alike(chapter: Chapter) -> tuple[str, ...]:
    """Everything but the precision."""
    return chapter.conditions.data, chapter.conditions.scale, chapter.device


def _rows(first: Chapter, second: Chapter) -> Iterator[list[str]]:
    for name in first.records:
        if name not in second.records:
            continue
        networks = {"one": Network(name, first.records[name]), "other": Network(name, second.records[name])}
        for words, key in ENDPOINTS.items():
            values = {which: network.endpoints(key) for which, network in networks.items()}
            if found := estimate(values, {"one": 1.0, "other": -1.0}):
                means = [mean_and_deviation(each.values()) for each in values.values()]
                yield [name, words, *means, signed(found.points), interval(found.interval()), probability(found.p)]
