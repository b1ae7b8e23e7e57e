"""Statistics of paired runs against numbers by hand, other formulas, and simulation."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from evidence.contrasts import (
    Estimate,
    beside_reference,
    deviation_interval,
    equivalence,
    estimate,
    estimate_in_modes,
    holm,
    power,
    seeds_for,
    with_new_images,
)

R, S, L = "R", "S", "L"
VALUES = {R: {0: 84.0, 1: 85.0, 2: 86.0}, S: {0: 81.0, 1: 82.5, 2: 84.0}, L: {0: 84.5, 1: 85.0, 2: 87.0}}


def test_two_arms_are_the_paired_t_test() -> None:
    ours, theirs = [84.5, 85.0, 87.0], [84.0, 85.0, 86.0]
    found = estimate({R: VALUES[R], L: VALUES[L]}, {L: 1, R: -1})
    paired = stats.ttest_rel(ours, theirs)
    assert found.points == pytest.approx(0.5)
    assert dict(found.each) == {0: 0.5, 1: 0.0, 2: 1.0}
    assert (found.freedom, found.p) == (2, pytest.approx(paired.pvalue))
    interval = paired.confidence_interval()
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_three_arms_pool_their_residual() -> None:
    # arm means 85, 82.5, 85.5; seed means 249.5/3, 252.5/3, 257/3; grand mean 759/9. Residuals by hand:
    # y - arm mean - seed mean + grand mean: R 1/6, 1/6, -1/3; S -1/3, 1/6, 1/6; L 1/6, -1/3, 1/6
    found = estimate(VALUES, {S: 1, R: -1})
    squares = 6 * (1 / 6) ** 2 + 3 * (1 / 3) ** 2
    assert found.points == pytest.approx(-2.5)
    assert found.freedom == 4
    assert found.deviation == pytest.approx(math.sqrt(squares / 4))
    assert found.error == pytest.approx(math.sqrt(squares / 4 * 2 / 3))
    # 2.7764: the 97.5 % quantile of t with 4 degrees of freedom, from a table
    half = 2.7764 * math.sqrt(squares / 4 * 2 / 3)
    assert found.interval() == pytest.approx((-2.5 - half, -2.5 + half), abs=1e-4)


def test_incomplete_seeds_leave_the_mean_of_the_pairs() -> None:
    values = VALUES | {S: {0: 81.0, 1: 82.5}}
    ours = estimate(values, {L: 1, R: -1})
    assert ours.points == pytest.approx(0.5)  # all three seeds
    theirs = estimate(values, {S: 1, R: -1})
    assert list(theirs.each) == [0, 1]
    assert theirs.points == pytest.approx(-2.75)
    # in seeds 0 and 1: three arms, two seeds
    assert theirs.freedom == 2
    # 3 + 3 + 2 values less 3 arms and 2 further seeds
    assert ours.freedom == 3


def test_what_has_no_residual_has_no_interval() -> None:
    one = estimate({R: {0: 84.0}, L: {0: 85.0, 1: 86.0}}, {L: 1, R: -1})
    assert (one.points, one.known, math.isnan(one.p)) == (1.0, False, True)
    alike = estimate({R: {0: 84.0, 1: 85.0}, L: {0: 85.1, 1: 86.1}}, {L: 1, R: -1})
    assert (alike.known, alike.deviation) == (False, 0.0)
    assert all(map(math.isnan, (*alike.interval(), equivalence(alike, 1.0), *with_new_images(alike, np.ones(3)))))
    assert estimate({R: {0: 84.0}, L: {1: 85.0}}, {L: 1, R: -1}) is None
    assert estimate({R: {0: 84.0}}, {L: 1, R: -1}) is None


def test_holms_p_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.4]) == pytest.approx([0.8, 0.003, 0.8])
    # a test whose runs are missing still counts among the three
    first, missing, second = holm([0.01, math.nan, 0.02])
    assert (first, second) == (pytest.approx(0.03), pytest.approx(0.04))
    assert math.isnan(missing)


def test_the_interval_for_new_images_is_that_of_both_variances() -> None:
    images = np.zeros(10_000)
    images[:1500], images[1500:2500] = 100.0, -100.0  # mean 5, variance 100²·0.25 - 25
    found = Estimate(points=5.0, error=0.3, freedom=200, deviation=0.5, each={})
    error = math.sqrt(0.3**2 + (2500.0 - 25.0) / 10_000)
    low, high = with_new_images(found, images)
    assert (low, high) == pytest.approx((5.0 - 1.96 * error, 5.0 + 1.96 * error), abs=0.03)
    # where no image differs from another it is the first interval, with as heavy tails as that of two seeds has
    few = Estimate(points=5.0, error=0.3, freedom=1, deviation=0.5, each={})
    assert with_new_images(few, np.full(10_000, 5.0)) == pytest.approx(few.interval())


def test_a_contrast_by_itself_is_scipys_t_test() -> None:
    values = {R: {0: 84.0, 1: 85.0, 2: 84.6}, S: {0: 80.0, 1: 83.0, 2: 81.0}, L: {0: 84.9, 1: 85.8, 2: 85.6}}
    found = estimate(values, {L: 1, R: -1})
    theirs = stats.ttest_rel(list(values[L].values()), list(values[R].values()))
    assert found.by_itself.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.by_itself.p == pytest.approx(theirs.pvalue)
    assert found.by_itself.p != pytest.approx(found.p)  # S's residual is larger


def test_two_one_sided_tests() -> None:
    found = Estimate(points=0.4, error=0.25, freedom=4, deviation=0.3, each={})
    # the nearer bound decides: (1 - 0.4) / 0.25 = 2.4 standard errors
    assert equivalence(found, 1.0) == pytest.approx(stats.t.sf(2.4, 4))
    # p < 0.05 just where the 90 % interval lies within the margin
    inside = found.interval(0.9)[1] < 1.0
    assert inside == (equivalence(found, 1.0) < 0.05)
    assert equivalence(Estimate(2.0, 0.25, 4, 0.3, {}), 1.0) > 0.99


def test_the_power_is_that_of_simulated_experiments() -> None:
    generator = np.random.default_rng(1)
    hits, trials, seeds = 0, 4000, 4
    for _ in range(trials):
        pair = generator.normal(size=(2, seeds)) * 0.6 + generator.normal(size=seeds)  # what the arms of a seed share
        hits += stats.ttest_rel(pair[0] + 1.2, pair[1]).pvalue < 0.05
    assert power(1.2, 0.6, seeds, arms=2) == pytest.approx(hits / trials, abs=0.03)
    assert power(0.0, 0.6, 5, arms=3) == pytest.approx(0.05)


def test_the_seeds_that_a_difference_takes() -> None:
    # paired t-test, tables of its power: d = δ / (σ√2) = 1 takes 10 pairs at 80 %
    assert seeds_for(math.sqrt(2.0), 1.0, arms=2) == 10
    assert power(math.sqrt(2.0), 1.0, 9, arms=2) < 0.8 <= power(math.sqrt(2.0), 1.0, 10, arms=2)
    assert seeds_for(math.sqrt(2.0), 1.0, arms=3) < 10
    # docs/protocol.md: the smallest differences with 80 % power, in stages 1 and 3, and in stage 2
    for points, deviation, seeds, arms in ((0.61, 0.2, 3, 3), (1.54, 0.5, 3, 3), (0.83, 0.35, 5, 2), (2.31, 0.5, 3, 2)):
        assert power(points, deviation, seeds, arms) == pytest.approx(0.8, abs=0.01)
    assert seeds_for(10.0, 0.1, arms=2) == 2
    assert seeds_for(0.001, 1.0, arms=2) is None


def test_the_interval_of_a_standard_deviation() -> None:
    # chi-square with 4 degrees of freedom: 0.4844 and 11.1433, from a table
    low, high = deviation_interval(0.5, 4)
    assert (low, high) == pytest.approx((0.5 * math.sqrt(4 / 11.1433), 0.5 * math.sqrt(4 / 0.4844)), abs=1e-3)
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        low, high = deviation_interval(statistics.stdev(generator.normal(size=5).tolist()), 4)
        inside += low < 1.0 < high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


def test_a_network_in_two_modes_is_what_the_others_are_put_beside() -> None:
    values = {
        ("R", "evaluation"): {0: 70.0, 1: 72.0},
        ("L", "evaluation"): {0: 71.0, 1: 72.5},
        ("R", "training_mode"): {0: 69.0, 1: 71.5},
        ("S", "training_mode"): {0: 66.0, 1: 69.5},
    }
    assert beside_reference(values) == {"R": {0: 0.0, 1: 0.0}, "L": {0: 1.0, 1: 0.5}, "S": {0: -3.0, 1: -2.0}}
    weights = {
        **{("L", "evaluation"): 1.0, ("R", "evaluation"): -1.0},
        **{("S", "training_mode"): -1.0, ("R", "training_mode"): 1.0},
    }
    found = estimate_in_modes(values, weights)
    assert (found.points, found.each, found.freedom) == (pytest.approx(3.25), {0: 4.0, 1: 2.5}, 2)
    # by hand: columns 0, (1, 0.5), (-3, -2) less their means, then less the means over the columns
    left = [1 / 12, 1 / 3, -5 / 12]
    residual = math.sqrt(2 * sum(value**2 for value in left) / 2)
    assert found.error == pytest.approx(residual * math.sqrt(2 / 2))
    two = {column: values[column] for column in (("R", "evaluation"), ("L", "evaluation"))}
    paired = estimate_in_modes(two, {("L", "evaluation"): 1.0, ("R", "evaluation"): -1.0})
    assert (paired.points, paired.freedom) == (pytest.approx(0.75), 1)
