"""Count the parameters of ImageNet λ-ResNets and set them beside the paper's tables."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from resnet_lambda import build_lambda_resnet

TOLERANCE = 0.1  # million; the paper rounds to one decimal
HEADS = (
    "The layer's count is fixed by its shapes, d·(h·k + u·d/h + u·k); no reading of it that fits the other rows fits\n"
    "these: values of d/2 channels (h = 2) cost more than the 8-head row's d/8 save, 16 heads take 0.1 M more than 4\n"
    "and not 0.8 M, and at 8 heads a smaller k cannot cost as much as k = 8."
)
HYBRID = "LLLL and CLLL, which differ from it in c2 and c3 alone, match; the difference is not explained."
LARGER = "The paper does not say what else its larger networks hold; these are the plain bottlenecks."
UNMATCHED = {
    "k = 8, h = 2, u = 1": HEADS,
    "k = 8, h = 16, u = 1": HEADS,
    "k = 2, h = 8, u = 1": HEADS,
    "k = 4, h = 8, u = 1": HEADS,
    "CCLL": HYBRID,
    "depth 152": LARGER,
    "depth 200": LARGER,
}
REASONS = (HEADS, HYBRID, LARGER)


@dataclass(frozen=True)
class Row:
    """A count of the paper, in millions, and the settings of its network."""

    name: str
    paper: float
    settings: dict[str, Any]

    @cached_property
    def count(self) -> float:
        """Millions of parameters of ours."""
        with torch.device("meta"):
            model = build_lambda_resnet(**self.settings)
        return sum(parameter.numel() for parameter in model.parameters()) / 1e6

    @property
    def matches(self) -> bool:
        return abs(self.count - self.paper) <= TOLERANCE


def paper_rows() -> list[Row]:
    """The paper's Tables 3, 12 and 13, and its larger networks."""
    depths = {
        (8, 2, 1): 14.8, (8, 16, 1): 15.6, (2, 4, 1): 14.7, (4, 4, 1): 14.7, (8, 4, 1): 14.8, (16, 4, 1): 15.0,
        (32, 4, 1): 15.4, (2, 8, 1): 14.7, (4, 8, 1): 14.7, (8, 8, 1): 14.7, (16, 8, 1): 15.1, (32, 8, 1): 15.7,
        (8, 8, 4): 15.3, (8, 8, 8): 16.0, (16, 4, 4): 16.0,
    }  # fmt: skip
    words = {"CCCC": 25.6, "LCCC": 25.5, "LLCC": 25.0, "LLLC": 21.7, "LLLL": 15.0}
    words |= {"CLLL": 15.1, "CCLL": 15.4, "CCCL": 18.8}
    rows = [
        Row(
            f"k = {k}, h = {h}, u = {u}",
            paper,
            {"key_depth": k, "heads": h, "intra_depth": u, "scope": 23 if u == 1 else 7},
        )
        for (k, h, u), paper in depths.items()
    ]
    rows += [Row(word, paper, {"stages": word, "scope": 23}) for word, paper in words.items()]
    return rows + [
        Row(f"depth {depth}", paper, {"depth": depth, "scope": 23}) for depth, paper in ((152, 35), (200, 42))
    ]


def print_table() -> None:
    """Every count of the paper beside ours, and a note on each reason for which some differ."""
    print(f"{'λ-ResNet-50, 1000 classes':28}{'paper M':>9}{'here M':>9}")
    rows = paper_rows()
    for row in rows:
        note = "" if row.matches else f"  ({1 + REASONS.index(UNMATCHED[row.name])})"
        print(f"{row.name:28}{row.paper:9.1f}{row.count:9.2f}{note}")
    for number, reason in enumerate(REASONS, start=1):
        print(f"({number}) {reason}".replace("\n", "\n    "))
    print(f"{sum(row.matches for row in rows)} of {len(rows)} counts are the paper's to {TOLERANCE} million.")
