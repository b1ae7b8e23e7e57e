"""Statistics of paired runs: what differs between arms that were trained with the same seeds.

A seed is a block. It fixes the order and the augmentation of the images for all arms, and most of their first weights,
so the runs of one seed rise and fall together, and arms are compared within a seed. The model is

    y[arm, seed] = effect of the arm + effect of the seed + residual,

fitted by least squares; the residual's variance is pooled over the arms. Of two arms it is the paired t-test.

An arm may be a network in one of the modes that it is tested in; one that stands in two is the reference, beside which
the others are put, each in its own mode. A contrast is a weighted sum of arms, such as
{"L": 1, "R": -1}, in the unit of y; here that is percentage points.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Arm = TypeVar("Arm", bound=Hashable)
CONFIDENCE, POWER = 0.95, 0.8
DRAWS = 10_000
MOST_SEEDS = 1000  # that are looked through


@dataclass(frozen=True)
class Estimate:
    """A contrast as the model has it."""

    points: float
    error: float  # standard error; nan where there is no residual to take it from
    freedom: int  # degrees of freedom of the residual
    deviation: float  # standard deviation of the residual
    each: Mapping[int, float]  # the contrast seed by seed

    @property
    def known(self) -> bool:
        """Whether there is an interval: two seeds at the least, and residuals that are not all 0."""
        return self.error > 0.0

    @property
    def p(self) -> float:
        """Two-sided, against a contrast of 0; nan where there is no interval."""
        return float(2.0 * stats.t.sf(abs(self.points) / self.error, self.freedom)) if self.known else math.nan

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """By the t distribution; (nan, nan) where there is none."""
        if not self.known:
            return math.nan, math.nan
        half = float(stats.t.ppf((1.0 + confidence) / 2.0, self.freedom)) * self.error
        return self.points - half, self.points + half

    @property
    def by_itself(self) -> "Estimate | None":
        """The paired t-test of this contrast, whose residual is pooled with no other arm's; None of no seed."""
        values = {"contrast": self.each, "nothing": dict.fromkeys(self.each, 0.0)}
        return estimate(values, {"contrast": 1.0, "nothing": -1.0})


def estimate(values: Mapping[Arm, Mapping[int, float]], weights: Mapping[Arm, float]) -> Estimate | None:
    """The contrast over the seeds that all its arms have; None where there is no such seed.

    Args:
        values: of each arm, by seed. The arms that are not in the contrast help to find the residual.
        weights: of the arms in the contrast; they add up to 0.
    """
    seeds = sorted(set.intersection(*(set(values.get(arm, {})) for arm in weights)))
    if not seeds:
        return None
    arms = [arm for arm in values if set(values[arm]) & set(seeds)]
    cells = [(arm, seed) for arm in arms for seed in seeds if seed in values[arm]]
    y = np.array([values[arm][seed] for arm, seed in cells])
    design = np.array([[arm == a for a in arms] + [seed == s for s in seeds[1:]] for arm, seed in cells], float)
    inverse = np.linalg.pinv(design.T @ design)
    effects = inverse @ design.T @ y
    contrast = np.array([weights.get(arm, 0.0) for arm in arms] + [0.0] * (len(seeds) - 1))
    freedom = len(y) - int(np.linalg.matrix_rank(design))
    squares = float(np.square(y - design @ effects).sum())
    deviation = math.sqrt(squares / freedom) if freedom else math.nan
    if deviation < 1e-9:  # rounding of values that agree
        deviation = 0.0
    return Estimate(
        points=float(contrast @ effects),
        error=deviation * math.sqrt(contrast @ inverse @ contrast),
        freedom=freedom,
        deviation=deviation,
        each={seed: sum(weight * values[arm][seed] for arm, weight in weights.items()) for seed in seeds},
    )


def beside_reference(values: Mapping[tuple[str, str], Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Of each network its values less the reference's in the same mode; the reference's own are 0.

    The reference is the network that stands in both modes, with the same weights and nearly the same values. As two
    arms it would count twice: the residual would come out too small, and its degrees of freedom too many.

    Raises:
        StopIteration: none does.
    """
    labels = [label for label, _ in values]
    reference = next(label for label in labels if labels.count(label) > 1)
    found: dict[str, dict[int, float]] = {}
    for (label, mode), own in values.items():
        theirs = values.get((reference, mode), {})
        found.setdefault(label, {}).update({seed: own[seed] - theirs[seed] for seed in own.keys() & theirs.keys()})
    return found


def estimate_in_modes(
    values: Mapping[tuple[str, str], Mapping[int, float]], weights: Mapping[tuple[str, str], float]
) -> Estimate | None:
    """As `estimate`, of (network, mode that it is tested in); one network may stand in two modes."""
    if len({label for label, _ in values}) == len(values):
        return estimate(values, weights)
    of_labels: dict[str, float] = {}
    for (label, _), weight in weights.items():
        of_labels[label] = of_labels.get(label, 0.0) + weight
    return estimate(beside_reference(values), of_labels)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; one that is nan stays so, and counts as a test that was made."""
    adjusted, highest = [math.nan] * len(p_values), 0.0
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def with_new_images(found: Estimate, of_images: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the contrast that also covers other test images: a bootstrap over seeds and images.

    Each draw takes as many test images with replacement, each with its runs together, and spreads the mean over the
    seeds by the model's t distribution: two to five seeds drawn with replacement would vary too little.

    Args:
        of_images: (n,) the contrast on each test image, mean over the seeds, in points: its mean is `found.points`.
    """
    if not found.known:
        return math.nan, math.nan
    generator = np.random.default_rng(0)
    numbers, counts = np.unique(of_images.round(9), return_counts=True)
    drawn = generator.multinomial(len(of_images), counts / len(of_images), size=DRAWS) @ numbers / len(of_images)

    def excess(points: float, share: float) -> float:
        """How much more than this share of the mixture of all draws' t distributions lies below so many points."""
        return float(stats.t.cdf((points - drawn) / found.error, found.freedom).mean()) - share

    def bound(share: float) -> float:
        reach = found.error * stats.t.ppf(share, found.freedom)
        return float(optimize.brentq(excess, drawn.min() + reach - 1.0, drawn.max() + reach + 1.0, args=(share,)))

    return bound((1.0 - CONFIDENCE) / 2.0), bound((1.0 + CONFIDENCE) / 2.0)


def equivalence(found: Estimate, margin: float) -> float:
    """p of two one-sided t-tests (TOST): small where the contrast lies within ± `margin`; nan without an interval."""
    if not found.known:
        return math.nan
    tests = [stats.t.sf((margin - sign * found.points) / found.error, found.freedom) for sign in (1.0, -1.0)]
    return float(max(tests))


# ------------------------------------------------------------------------------------------ how many seeds it takes


def power(points: float, deviation: float, seeds: int, arms: int) -> float:
    """Power of the two-sided t-test to tell a difference of two arms of so many points from 0: by the noncentral t.

    Args:
        deviation: of the residual.
        arms: of the model, from which the residual is pooled.
    """
    freedom = (arms - 1) * (seeds - 1)
    shift = points / (deviation * math.sqrt(2.0 / seeds))
    reach = stats.t.ppf((1.0 + CONFIDENCE) / 2.0, freedom)
    # beyond this the other tail is nought, and SciPy's series for it may fail
    other_tail = stats.nct.cdf(-reach, freedom, shift) if shift < 5.0 else 0.0
    return float(stats.nct.sf(reach, freedom, shift) + other_tail)


def seeds_for(points: float, deviation: float, arms: int) -> int | None:
    """The fewest seeds that tell two arms apart at 80 % power, two at the least; None: more than `MOST_SEEDS`."""
    return next((n for n in range(2, MOST_SEEDS + 1) if power(points, deviation, n, arms) >= POWER), None)


def deviation_interval(deviation: float, freedom: int) -> tuple[float, float]:
    """95 % interval of a standard deviation that was found with so many degrees of freedom: by chi-square."""
    tails = stats.chi2.ppf([(1.0 + CONFIDENCE) / 2.0, (1.0 - CONFIDENCE) / 2.0], freedom)
    low, high = deviation * np.sqrt(freedom / tails)
    return float(low), float(high)
