"""Records of returns: all of what does not change, the latest of what learns."""

import math

from hubrl.selection.return_records import CAPACITY, ReturnRecords


def records(window=4):
    return ReturnRecords(["source", "learner"], {"learner"}, window)


def test_an_arm_that_learns_is_known_by_its_latest_returns():
    made = records()
    for value in range(1, 7):
        made.add(1, float(value))
    assert sorted(made.returns(1)) == [3.0, 4.0, 5.0, 6.0]
    assert made.mean_return(1) == 4.5
    assert made.count(1) == 4


def test_all_returns_of_an_arm_that_is_fixed_count():
    made = records()
    for value in range(CAPACITY):
        made.add(0, float(value))
    assert made.returns(0) == [float(value) for value in range(CAPACITY)]
    made.add(0, 7.0)
    assert made.count(0) == CAPACITY


def test_nothing_is_known_of_an_arm_that_has_not_played():
    made = records()
    assert made.returns(0) == []
    assert math.isnan(made.mean_return(0))


def test_near_the_end_older_returns_of_a_learner_stay_beside_new_ones():
    made = records()
    for value in range(1, 7):
        made.add(1, float(value))
    made.add(1, 7.0, keep=True)
    made.add(1, 8.0, keep=True)
    assert sorted(made.returns(1)) == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    made.restore_windows()
    assert made.count(1) == 4


def test_forget_clears_one_arm():
    made = records()
    made.add(0, 1.0)
    made.add(1, 2.0)
    made.forget(1)
    assert made.returns(0) == [1.0]
    assert made.returns(1) == []
    made.add(1, 3.0)
    assert made.returns(1) == [3.0]


def test_records_survive_saving():
    made, other = records(), records()
    made.add(0, 1.5)
    made.add(1, -2.5)
    other.load_state_dict(made.state_dict())
    assert [other.returns(arm) for arm in (0, 1)] == [[1.5], [-2.5]]
