"""What segments say of a source: only what is clearly no better than an untrained network is dropped."""

import pytest

from hubrl.selection.probe_verdict import Fate, judge_segments, starting_points, still_racing
from hubrl.selection.settings import TrustSettings
from hubrl.selection.statistics import conservative_lag

SETTINGS = TrustSettings()
UNTRAINED = [-2.0, 3.0, 8.0, -7.0, 1.0, -3.0]


def fates(untrained, **sources):
    return judge_segments(sources, untrained, SETTINGS)


def test_a_source_below_every_untrained_network_is_dropped():
    assert fates(UNTRAINED, bad=[-9.0, -8.0, -20.0])["bad"] is Fate.DROPPED


def test_one_segment_above_an_untrained_network_is_enough_not_to_be_dropped():
    assert fates(UNTRAINED, poor=[-9.0, -8.0, -6.9])["poor"] is Fate.DOUBTED
    assert fates([0.0, 0.0], same=[0.0, 0.0])["same"] is Fate.DOUBTED, "a tie says nothing"


def test_a_source_that_earns_far_more_is_not_dropped_however_much_untrained_networks_vary():
    """29.9 +- 0.5 beside -2 +- 6 was dropped once, and earned eight times what scratch ends with."""
    fate = fates([-20.0, 12.0, -9.0, 15.0, -2.0, -8.0], good=[29.4, 30.4, 29.9, 29.9, 29.5, 30.3])[
        "good"
    ]
    assert fate in (Fate.DOUBTED, Fate.KEPT)


def test_a_source_is_kept_for_its_better_half():
    """It may be good for a part of the task alone."""
    assert (
        fates(UNTRAINED, half=[-1300.0, 1300.0, -1300.0, 1301.0, -1300.0, 1302.0])["half"]
        is Fate.KEPT
    )


def test_a_clear_difference_of_segments_is_twice_that_of_episodes():
    untrained = [0.0, 2.0, 4.0]
    edge = 2.0 + 2 * SETTINGS.episode_errors * (4.0 / 2 + 4.0 / 3) ** 0.5
    above, below = ([-99.0, edge - 1 + shift, edge + 1 + shift] for shift in (0.05, -0.05))
    assert fates(untrained, above=above)["above"] is Fate.KEPT
    assert fates(untrained, below=below)["below"] is Fate.DOUBTED


def test_a_source_of_less_than_half_the_best_ones_gain_is_deferred_and_not_dropped():
    found = fates([0.0, 1.0], best=[30.0, 30.1] * 2, near=[16.0, 16.1] * 2, far=[10.0, 10.1] * 2)
    assert found == {"best": Fate.KEPT, "near": Fate.KEPT, "far": Fate.DEFERRED}


def test_what_may_be_level_with_the_best_is_not_deferred():
    found = fates([0.0, 1.0], best=[90.0, 30.0, 60.0], noisy=[0.0, 50.0, 20.0])
    assert found["noisy"] is not Fate.DEFERRED


@pytest.mark.parametrize(
    ("own", "untrained"),
    [([100.0], [0.0, 1.0]), ([], [0.0, 1.0]), ([-5.0], [0.0, 1.0]), ([1.0, 2.0], [])],
)
def test_fewer_than_two_segments_decide_nothing(own, untrained):
    assert fates(untrained, once=own)["once"] is Fate.DOUBTED


def test_those_that_are_clearly_worse_than_the_best_leave_the_race():
    returns = {"low": [0.0, 0.1], "best": [10.0, 11.0], "near": [9.0, 11.0], "once": [0.0]}
    assert still_racing(returns, 2.0) == ["best", "near", "once"]


def test_a_tie_without_variance_keeps_everybody_in_the_race():
    assert still_racing({"one": [2.0, 2.0], "two": [2.0, 2.0], "less": [1.0, 1.0]}, 2.0) == [
        "one",
        "two",
    ]


def test_by_segments_the_router_starts_at_the_likelihood_of_being_level_with_the_best():
    returns = {
        "first": [30.0, 34.0],
        "second": [29.0, 31.0],
        "far": [10.0, 10.1],
        "out": [0.0, 0.0],
    }
    start = starting_points(returns, ["first", "second", "far"], SETTINGS)
    lag = conservative_lag(returns["second"], returns["first"])
    assert 0 < lag < 2
    lowest = -SETTINGS.most_lag
    assert start == {
        "first": 0.0,
        "second": pytest.approx(-(lag**2) / 2),
        "far": lowest,
        "out": lowest,
    }


def test_where_no_source_is_kept_the_router_starts_uniform():
    assert starting_points({"bad": [0.0, 1.0], "worse": [-4.0, 5.0]}, [], SETTINGS) == {
        "bad": 0.0,
        "worse": 0.0,
    }
