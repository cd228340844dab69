"""The fresh pathway's trial: when it begins, what it shows, and who goes on."""

import numpy as np
import pytest

from hubrl.selection.fresh_trial import CAPACITY, FORECAST_EPISODES, Curve, FreshTrial, Phase
from hubrl.selection.settings import TrustSettings

SETTINGS = TrustSettings()
TOTAL = 1000
ROUND = 10.0


def trial_of(hub, *, begun=100, n_sources=1):
    """A trial that has begun, by what the hub had earned in equal steps."""
    trial = FreshTrial(SETTINGS)
    for place, earned in enumerate(hub):
        trial.add(begun * place // len(hub), earned, fresh=False)
    assert (
        trial.advance(begun, TOTAL, n_sources=n_sources, round_steps=ROUND, alternatives=())
        is Phase.TRIAL
    )
    return trial


def decided(fresh, hub, *, begun=100, n_sources=1, alternatives=()):
    """The trial after it, by what each earned."""
    trial = trial_of(hub, begun=begun, n_sources=n_sources)
    length = round(SETTINGS.trial_share * TOTAL)
    for place, earned in enumerate(fresh, start=1):
        trial.add(begun + length * place // len(fresh), float(earned), fresh=True)
    trial.advance(
        begun + length, TOTAL, n_sources=n_sources, round_steps=ROUND, alternatives=alternatives
    )
    return trial


def test_a_curve_keeps_the_latest_in_order():
    curve = Curve()
    assert len(curve) == 0
    assert curve.latest.shape == (0, 2)
    for when in range(CAPACITY + 2):
        curve.add(when, 10.0 * when)
    assert len(curve) == CAPACITY
    assert curve.latest[0].tolist() == [2.0, 20.0]
    assert curve.latest[-1].tolist() == [CAPACITY + 1.0, 10.0 * (CAPACITY + 1)]
    copy = Curve()
    copy.load_state_dict(curve.state_dict())
    assert copy.latest.tolist() == curve.latest.tolist()
    copy.forget()
    assert len(copy) == 0


def test_the_fresh_pathway_goes_on_alone_where_its_line_leads_higher():
    # From 1 to 10 in a tenth of the training, and three times as far again.
    rising = decided(np.arange(1.0, 11.0), [30.0] * FORECAST_EPISODES)
    assert rising.at is Phase.ALONE
    assert rising.forecasts == pytest.approx((40.0, 30.0))


@pytest.mark.parametrize(
    ("fresh", "hub"),
    [(np.arange(1.0, 11.0), 45.0), ([5.0] * 10, 50.0), (np.arange(1.0, FORECAST_EPISODES), 0.0)],
    ids=["not enough", "no slope", "too few episodes"],
)
def test_the_hub_plays_on_where_it_does_not(fresh, hub):
    assert decided(fresh, [hub] * FORECAST_EPISODES).at is Phase.SETTLED


def test_a_line_that_leads_by_less_than_two_standard_errors_does_not_win():
    # As on LunarLander, where a steep and noisy start promised more than can be earned.
    noise = np.array([1.2, -1.2] * 5)
    trial = decided(np.arange(1.0, 11.0) + noise, [30.0] * FORECAST_EPISODES)
    assert trial.forecasts[0] > trial.forecasts[1]
    assert trial.at is Phase.SETTLED
    assert "which is not clearly more: the hub plays" in trial.explained(Phase.TRIAL)
    assert decided(np.arange(1.0, 11.0) + noise / 4, [30.0] * FORECAST_EPISODES).at is Phase.ALONE


def test_a_trial_lasts_its_share_of_the_training():
    trial = trial_of([1.0] * FORECAST_EPISODES)
    options = {"n_sources": 1, "round_steps": ROUND, "alternatives": ()}
    assert trial.advance(199, TOTAL, **options) is None
    assert trial.at is Phase.TRIAL
    assert trial.advance(200, TOTAL, **options) is Phase.SETTLED
    assert trial.advance(999, TOTAL, **options) is None, "once"


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        (np.arange(1.0, 11.0), Phase.SETTLED),
        (10 * np.arange(1.0, 11.0), None),
        ([1.0] * (FORECAST_EPISODES - 1), None),
    ],
    ids=["cannot come far enough", "can", "too few episodes"],
)
def test_a_trial_ends_early_where_even_a_steeper_line_does_not_lead_as_high(fresh, expected):
    trial = trial_of([100.0] * FORECAST_EPISODES)
    for place, earned in enumerate(fresh):
        trial.add(100 + 5 * place, float(earned), fresh=True)
    assert trial.advance(150, TOTAL, n_sources=1, round_steps=ROUND, alternatives=()) is expected


def test_a_trial_does_not_end_by_episodes_that_all_ended_at_once():
    trial = trial_of([100.0] * FORECAST_EPISODES)
    for _ in range(FORECAST_EPISODES):
        trial.add(110, 1.0, fresh=True)
    options = {"n_sources": 1, "round_steps": ROUND, "alternatives": ()}
    assert trial.advance(150, TOTAL, **options) is None
    assert trial.advance(200, TOTAL, **options) is Phase.SETTLED


def test_a_hub_whose_returns_fall_is_not_expected_to_fall_for_ever():
    falling = [200.0 - 2 * episode for episode in range(2 * FORECAST_EPISODES)]
    trial = decided(np.arange(1.0, 11.0), falling, begun=300, n_sources=2)
    assert trial.forecasts[1] == pytest.approx(np.mean(falling[-FORECAST_EPISODES:]))


def test_a_hub_of_one_source_is_not_expected_to_rise_for_ever():
    rising = [1.0 + episode for episode in range(30)]
    alone = decided(np.arange(1.0, 11.0), rising)
    assert alone.forecasts[1] == pytest.approx(np.mean(rising[-FORECAST_EPISODES:]))
    assert alone.at is Phase.ALONE
    # One more in every hundredth of the training: those of several sources go on.
    several = decided(np.arange(1.0, 11.0), rising, begun=300, n_sources=2)
    assert several.forecasts[1] == pytest.approx(1.0 + 100.0)
    assert several.at is Phase.SETTLED


def test_a_hub_is_expected_to_earn_what_its_best_arm_does():
    assert (
        decided(np.arange(1.0, 11.0), [20.0] * FORECAST_EPISODES, alternatives=(45.0, 30.0)).at
        is Phase.SETTLED
    )
    assert (
        decided(np.arange(1.0, 11.0), [20.0] * FORECAST_EPISODES, alternatives=(30.0,)).at
        is Phase.ALONE
    )


def test_there_is_no_trial_where_it_could_show_nothing():
    trial = FreshTrial(SETTINGS)
    options = {"n_sources": 2, "alternatives": ()}
    for _ in range(FORECAST_EPISODES - 1):
        trial.add(0, 1.0, fresh=False)
    assert trial.advance(500, TOTAL, round_steps=ROUND, **options) is None, (
        "the hub has not shown what it earns"
    )
    trial.add(0, 1.0, fresh=False)
    assert trial.advance(249, TOTAL, round_steps=ROUND, **options) is None, (
        "several sources first learn to combine"
    )
    assert trial.advance(250, TOTAL, round_steps=50.1, **options) is Phase.SETTLED, (
        "no room for two rounds of episodes"
    )


@pytest.mark.parametrize(
    ("now", "round_steps"),
    [(950, ROUND), (100, float("inf"))],
    ids=["too late", "no episode has ended"],
)
def test_no_trial_begins_that_could_not_end_or_whose_length_is_not_known(now, round_steps):
    trial = FreshTrial(SETTINGS)
    for _ in range(FORECAST_EPISODES):
        trial.add(0, 1.0, fresh=False)
    assert (
        trial.advance(now, TOTAL, n_sources=1, round_steps=round_steps, alternatives=())
        is Phase.SETTLED
    )


def test_without_a_share_there_is_no_trial():
    trial = FreshTrial(TrustSettings(trial_share=0.0))
    for _ in range(FORECAST_EPISODES):
        trial.add(0, 1.0, fresh=False)
    assert (
        trial.advance(100, TOTAL, n_sources=1, round_steps=ROUND, alternatives=()) is Phase.SETTLED
    )


def test_returns_before_the_trial_do_not_count_for_the_network_that_begins_there():
    trial = FreshTrial(SETTINGS)
    for _ in range(FORECAST_EPISODES):
        trial.add(0, 50.0, fresh=False)
        trial.add(0, -100.0, fresh=True)
    trial.advance(100, TOTAL, n_sources=1, round_steps=ROUND, alternatives=())
    assert trial.at is Phase.TRIAL
    assert len(trial.fresh) == 0
    trial.add(110, 3.0, fresh=False)
    assert len(trial.hub) == FORECAST_EPISODES, (
        "nor what the hub earns meanwhile of what it earned before"
    )


def test_a_trial_that_was_not_finished_is_to_come_again():
    trial = trial_of([1.0] * FORECAST_EPISODES)
    assert trial.is_swapped
    trial.begin()
    assert trial.at is Phase.HUB
    assert not trial.is_swapped
    assert len(trial.hub) == len(trial.fresh) == 0


@pytest.mark.parametrize(
    ("phases", "swapped", "claims"),
    [
        ([Phase.DOUBT], False, True),
        ([Phase.DOUBT, Phase.ALONE], False, True),
        ([Phase.DOUBT, Phase.HUB], False, False),
        ([Phase.HUB, Phase.TRIAL], True, True),
        ([Phase.HUB, Phase.TRIAL, Phase.ALONE], True, True),
        ([Phase.HUB, Phase.TRIAL, Phase.SETTLED], False, False),
    ],
)
def test_the_fresh_pathway_has_an_actor_of_its_own_from_its_trial_on(phases, swapped, claims):
    trial = FreshTrial(SETTINGS)
    for phase in phases:
        trial.go(phase)
    assert trial.is_swapped == swapped
    assert trial.fresh_claims == claims


def test_a_trial_survives_saving():
    trial, other = trial_of([1.0] * FORECAST_EPISODES), FreshTrial(SETTINGS)
    other.load_state_dict(trial.state_dict())
    assert other.at is Phase.TRIAL
    assert other.is_swapped
    assert float(other.get_buffer("until")) == 200
