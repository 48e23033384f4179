import math

import numpy as np
import pytest
from scipy import stats

from polytask.errors import DataError
from polytask.evaluation.statistics import corrected, holm, mean_interval, paired_difference

NAN = math.nan


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_and_paired_test_are_those_of_scipy(count, level):
    random = np.random.default_rng(count)
    a, b = random.normal(1e6, 3, count), random.normal(1e6, 3, count)
    ours = mean_interval(a, level)
    low, high = stats.t.interval(level, count - 1, a.mean(), stats.sem(a))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-12)
    difference, theirs = paired_difference(a, b, level), stats.ttest_rel(a, b)
    assert difference.p == pytest.approx(theirs.pvalue, rel=1e-9)
    ends = theirs.confidence_interval(level)
    assert (difference.interval.low, difference.interval.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_undefined_values_leave_their_pair_out():
    assert mean_interval([1.0, None, 3.0, NAN]) == mean_interval([1.0, 3.0])
    assert paired_difference([1, NAN, 3, 5], [0, 1, None, 3]).interval == mean_interval([1.0, 2.0])


def test_one_value_has_no_interval_and_none_no_mean():
    one = mean_interval([0.5])
    assert one.mean == 0.5
    assert not one.known
    assert math.isnan(paired_difference([1], [0]).p)
    assert not paired_difference([1], [0]).beyond_noise()
    assert math.isnan(mean_interval([]).mean)


def test_pairs_that_differ_by_one_amount_have_no_spread_to_test_by():
    assert math.isnan(paired_difference([0.3, 0.2], [0.2, 0.1]).p)
    assert paired_difference([0.2, 0.1], [0.2, 0.1]).p == 1.0


def test_holm_against_its_definition_by_rejections():
    # The adjusted value is the smallest level at which the step-down procedure rejects.
    random = np.random.default_rng(3)
    for _ in range(50):
        p = random.uniform(size=6) ** 3
        adjusted = holm(p)
        for alpha in (0.01, 0.05, 0.2):
            order, rejected = np.argsort(p), set()
            for place, index in enumerate(order):
                if p[index] > alpha / (len(p) - place):
                    break
                rejected.add(index)
            assert rejected == {i for i, value in enumerate(adjusted) if value <= alpha}
    assert holm([0.01, NAN, 0.04])[0] == 0.02
    assert math.isnan(holm([0.01, None])[1])


def test_corrected_keeps_all_but_the_probability():
    family = {"a": paired_difference([2, 3, 4.5], [1, 2, 3]), "b": paired_difference([1, 2, 3.1], [1, 2.2, 3])}
    found = corrected(family)
    assert [d.adjusted for d in found.values()] == holm([d.p for d in family.values()])
    assert found["a"].interval == family["a"].interval


def test_bad_input():
    with pytest.raises(DataError, match="equally many numbers on both sides; found 2 and 1"):
        paired_difference([1, 2], [1])
    with pytest.raises(DataError, match="level is 95"):
        mean_interval([1, 2], 95)
    with pytest.raises(DataError, match=r"from 0 to 1; found 1\.5"):
        holm([1.5])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_and_false_rejections_on_simulated_comparisons(seeds):
    random = np.random.default_rng(seeds)
    rounds, methods = 4000, 6
    covered = rejected = 0
    for _ in range(rounds):
        base = random.normal(0.9, 0.01, seeds)
        family = {str(m): paired_difference(random.normal(0.9, 0.02, seeds), base) for m in range(methods)}
        covered += sum(d.interval.low <= 0 <= d.interval.high for d in family.values())
        rejected += any(d.beyond_noise() for d in corrected(family).values())
    # Three standard errors; intervals that share a baseline are dependent, so theirs is that of one a round.
    assert abs(covered / (rounds * methods) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / rounds)
    assert rejected / rounds < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
