"""Sources that halving set aside: in which order they are judged, and when one joins."""

import pytest

from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.selection.settings import TrustSettings
from hubrl.selection.waiting_sources import WaitingSources

FATES = [Fate.KEPT, Fate.SET_ASIDE, Fate.DROPPED, Fate.SET_ASIDE, Fate.SET_ASIDE]


@pytest.fixture
def arms():
    made = WaitingSources(list("abcde"), TrustSettings())
    made.judge(FATES, [5.0, 1.0, 0.0, 3.0, 2.0])
    for value in (10.0, 20.0):
        made.records.add(0, value)
    return made


def test_the_best_by_segments_is_judged_first_and_what_earns_less_once(arms):
    assert arms.candidates == [0]
    assert arms.waiting == [3, 4, 1]
    arms.records.add(3, 9.0)
    assert arms.waiting == [4, 1], "less than the best source ever earned"
    arms.records.add(4, 10.0)
    assert arms.waiting == [4, 1], "no less than that"
    for value in (30.0, 30.0):
        arms.records.add(4, value)
    assert arms.waiting == [1], "three episodes are enough"


def test_what_earns_no_less_than_the_best_joins(arms):
    for value in (30.0, 30.0):
        arms.records.add(4, value)
    assert arms.join() == [], "not before three episodes"
    arms.records.add(4, 30.0)
    for value in (14.0, 14.0, 14.0):
        arms.records.add(3, value)
    (sentence,) = arms.join()
    assert sentence == (
        "e, which halving had set aside, earns 30 in whole episodes, no less than the best source: "
        "it joins the hub."
    )
    assert (arms.joined, arms.candidates, arms.best_source) == ([4], [0, 4], 4)
    assert (arms.join(), arms.joined) == ([], [])


def test_where_all_are_in_doubt_what_joins_is_in_doubt_too(arms):
    arms.trial.go(Phase.DOUBT)
    for value in (30.0, 30.0, 30.0):
        arms.records.add(1, value)
    arms.join()
    assert arms.fate(1) is Fate.DOUBTED
