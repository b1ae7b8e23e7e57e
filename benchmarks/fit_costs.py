"""Fits the costs by which `lambda_ops/rule.py` chooses among its ways to the timings of `benchmark.py layer`.

A time is taken for the sum of what the shape costs whichever way is taken (projections, norms, content)
and of the way's units of work, each at its cost: all of them at least nought, by least squares of the relative errors,
in which a way counts less the slower it is beside the shape's fastest.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.layer import MEASURED, Case
from command_line.errors import InputError
from lambda_ops.rule import COSTS, Costs, Way, cost

UNITS = Costs(*np.eye(len(Costs._fields)))  # a cost that is linear in these has the units of work for its value
NOT_WAYS = ("chosen", "einsum", "conv3d")


class Timed(NamedTuple):
    """A way of a shape: the units of work of a whole batch, in millions, and the median time in milliseconds."""

    shape: int
    way: str
    work: np.ndarray
    milliseconds: float


def print_costs(path: Path) -> None:
    """Fit to a file that `benchmark.py layer` has written.

    Raises:
        InputError: it is none.
    """
    timings_of, device = read(path)
    for name, backward in MEASURED.items():
        timed = timings_of[name]
        fitted = fit(timed)
        print(f"    ({device!r}, {backward}): Costs({', '.join(f'{value:g}' for value in fitted)}),")
        for words, costs in (("by these", fitted), ("by lambda_ops/rule.py", COSTS[device, backward])):
            ratios = chosen_to_best(timed, costs)
            worst = f"{max(ratios):.2f}; above 1.1 for {sum(ratio > 1.1 for ratio in ratios)} of {len(ratios)} shapes"
            print(f"        {words}, chosen / fastest way: worst {worst}")


def read(path: Path) -> tuple[dict[str, list[Timed]], str]:
    """The timings of the file, and the kind of its device; files of earlier versions tell it less clearly."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        timed = {name: timings(report["cases"], name) for name in MEASURED}
        return timed, report.get("kind") or ("cuda" if "cuda" in report["memory"] else "cpu avx512")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"file: {path} is no file of benchmark.py layer ({type(error).__name__}: {error})") from error


def timings(cases: list[dict[str, Any]], measured: str) -> list[Timed]:
    """Every forced way of every shape."""
    timed = []
    for shape, case in enumerate(cases):
        described = Case(case["side"], case["dim"], case["scope"], case["intra_depth"])
        arguments = described.rule_arguments(described.layer())
        for name, row in case["rows"].items():
            if name not in NOT_WAYS:
                work = np.asarray(cost(parse_way(name), *arguments, costs=UNITS))
                timed.append(Timed(shape, name, work * case["batch"] / 1e6, row[f"{measured}_ms"]["median"]))
    return timed


def parse_way(name: str) -> Way:
    """The inverse of `layer.way_name`."""
    order, _, tile = name.partition(" ")
    return Way(order, tuple(map(int, tile.split("x"))) if tile else ())


def fit(timed: list[Timed]) -> Costs:
    """The costs in nanoseconds, to three digits."""
    shapes = 1 + max(entry.shape for entry in timed)
    fastest = [min(entry.milliseconds for entry in timed if entry.shape == shape) for shape in range(shapes)]
    rows = np.stack([np.concatenate([entry.work, np.eye(shapes)[entry.shape]]) for entry in timed])
    times = np.array([entry.milliseconds for entry in timed])
    weights = np.array([fastest[entry.shape] / entry.milliseconds**2 for entry in timed])
    found, _ = nnls(rows * weights[:, None], times * weights, maxiter=100_000)
    return Costs(*(float(f"{value:.3g}") for value in found[: len(UNITS)]))


def chosen_to_best(timed: list[Timed], costs: Costs) -> list[float]:
    """For each shape, the time of the way that is cheapest by the costs over that of the fastest."""
    ratios = []
    for shape in sorted({entry.shape for entry in timed}):
        ways = [entry for entry in timed if entry.shape == shape]
        chosen = min(ways, key=lambda entry: float(entry.work @ np.asarray(costs)))
        ratios.append(chosen.milliseconds / min(entry.milliseconds for entry in ways))
    return ratios
