import math

import numpy as np
import pytest
from scipy import stats

from hubrl.selection.statistics import (
    better_half,
    conservative_lag,
    corrected_lag,
    extrapolate_return,
    stands_out,
    welch_lag,
)


def test_the_lag_is_welchs_t():
    one, other = [1.0, 2.0, 3.0, 5.0], [4.0, 6.0, 9.0]
    expected = stats.ttest_ind(other, one, equal_var=False).statistic
    assert welch_lag(one, other) == pytest.approx(expected)


def test_equal_means_and_single_returns_have_no_lag():
    assert welch_lag([1.0, 3.0], [2.0, 2.0]) == 0.0
    assert welch_lag([1.0], [100.0, 101.0]) == 0.0


def test_samples_without_spread_are_infinitely_apart():
    assert welch_lag([1.0, 1.0], [2.0, 2.0]) == math.inf
    assert welch_lag([2.0, 2.0], [1.0, 1.0]) == -math.inf


@pytest.mark.parametrize("size", [3, 5, 20])
def test_the_corrected_lag_is_as_unlikely_as_students_t(size):
    rng = np.random.default_rng(size)
    one, other = rng.normal(0, 1, size).tolist(), rng.normal(1, 2, size).tolist()
    exact = stats.t.sf(conservative_lag(one, other), size - 1)
    assert corrected_lag(one, other) == pytest.approx(stats.norm.isf(exact), rel=0.05, abs=0.02)


def test_a_few_returns_that_are_alike_are_given_the_spread_of_the_other_sample():
    alike, varied = [211.0, 212.0, 210.0], [280.0, -60.0, 240.0, 20.0]
    assert welch_lag(varied, alike) > 1.0
    assert conservative_lag(varied, alike) < 0.9
    assert conservative_lag(alike, varied) == -conservative_lag(varied, alike)


def test_a_line_is_extended_where_its_slope_is_clear():
    when = np.arange(10.0)
    assert extrapolate_return(when, 2 * when + 1, 20.0) == pytest.approx((41.0, 0.0))


def test_the_mean_stands_for_returns_without_a_clear_slope():
    returns = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    expected, error = extrapolate_return(np.arange(6.0), returns, 100.0)
    assert expected == pytest.approx(0.0)
    assert error == pytest.approx(stats.linregress(np.arange(6.0), returns).stderr * 97.5)


@pytest.mark.parametrize("when", [[5.0] * 8, [1.0, 2.0]], ids=["all at once", "two"])
def test_a_slope_that_cannot_be_measured_may_be_any(when):
    expected, error = extrapolate_return(np.array(when), np.arange(len(when)) * 1.0, 9.0)
    assert expected == pytest.approx((len(when) - 1) / 2)
    assert error == np.inf


def test_what_is_good_for_a_part_alone_stands_out():
    nothing = [-1.0, 0.0, -30.0, -20.0]
    assert stands_out([-2000.0, 1500.0, -1800.0, 1200.0], nothing, 4.0)
    assert not stands_out([0.0, 1.0, -1.0, 0.0], nothing, 4.0)
    assert not stands_out([], nothing, 4.0)
    assert not stands_out([100.0, 100.0], [0.0], 4.0)


def test_the_better_half_contains_the_median():
    assert better_half([3.0, 1.0, 2.0]) == [2.0, 3.0]
    assert better_half([4.0, 1.0, 2.0, 3.0]) == [3.0, 4.0]
