"""Hubs of many sources, one of which is good: successive halving finds it within the probe's budget."""

import numpy as np
import pytest
import torch
from hubs import aiming, always
from stable_baselines3 import PPO

from hubrl import HubCallback
from hubrl.routing.pathways import FRESH
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.training import probe as probing
from hubrl.training.halving import FEW_SOURCES, round_sizes
from hubrl.training.probe import SEGMENTS, probe
from hubrl.training.segments import SEGMENT_STEPS


def many(count, good=None, *, worth=0.75, n_envs=1, **options):
    """A model of many sources, of which one aims well."""
    rng = np.random.default_rng(0)
    sources = [always(f"poor-{index}", float(rng.uniform(-0.9, 0.3))) for index in range(count)]
    if good is not None:
        sources[good] = always("good", worth)
    return aiming(*sources, n_envs=n_envs, **options)


def test_half_of_the_sources_go_on_until_few_are_left():
    assert round_sizes(200) == [200, 100, 50, 25, 13]
    assert round_sizes(FEW_SOURCES + 1) == [FEW_SOURCES + 1]
    assert round_sizes(FEW_SOURCES) == []


@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize(("count", "good"), [(9, 0), (50, 49), (50, 20)])
def test_the_one_good_source_of_many_is_found_within_the_budget(count, good, n_envs):
    model, budget = many(count, good, n_envs=n_envs), 4000
    result = probe(model, budget)
    assert result.steps <= budget
    assert model.get_env().get_attr("total") == [result.steps // n_envs] * n_envs
    assert len(result.fates) == count
    assert list(result.fates) == model.policy.method.pathways.names[:-1]
    assert result.fates["good"] is Fate.KEPT
    left = [name for name, fate in result.fates.items() if fate is not Fate.SET_ASIDE]
    assert 0 < len(left) <= FEW_SOURCES
    assert list(result.returns) == [*left, FRESH]
    assert all(len(own) >= SEGMENTS for own in result.returns.values())
    weights = model.policy.route(torch.randn(5, 4)).weights
    assert weights[:, good].min() > 0.5
    aside = [index for index, fate in enumerate(result.fates.values()) if fate is Fate.SET_ASIDE]
    assert (weights[:, aside] == 0).all()


def test_segments_get_longer_as_sources_get_fewer(monkeypatch):
    lengths, play = [], probing.play_segment
    monkeypatch.setattr(
        "hubrl.training.halving.play_segment",
        lambda policy, env, players, segment, **rest: (
            lengths.append(segment),
            play(policy, env, players, segment, **rest),
        )[1],
    )
    probe(many(32, 5), 6000)
    first, second = lengths[:32], lengths[32:]
    assert len(second) == 16
    assert SEGMENT_STEPS[0] <= min(first) == max(first) < min(second) == max(second)


def test_few_sources_are_not_halved():
    assert probe(many(FEW_SOURCES, 3), 4000).halving is None


def test_a_budget_too_small_for_the_shortest_segments_changes_nothing():
    model = many(20, 3)
    least = SEGMENT_STEPS[0] * (20 + 10 + SEGMENTS * (FEW_SOURCES + 1))
    assert probe(model, least - 1) is None
    assert model.policy.method.trusted_pathways == [True] * 21
    assert probe(model, least).steps <= least


def test_where_the_best_are_no_better_than_untrained_networks_all_are_dropped():
    model = aiming(*(always(f"bad-{index}", -1.0) for index in range(12)))
    assert set(probe(model, 3000).fates.values()) == {Fate.DROPPED}
    assert model.policy.fresh_alone
    assert model.policy.selection.trial.at is Phase.ALONE


def test_without_selection_only_what_is_clear_is_kept():
    model = many(20, 7, top_k=2)
    probe(model, 4000)
    kept = model.policy.method.trusted_pathways
    assert kept[7]
    assert kept[-1]
    assert sum(kept) <= FEW_SOURCES + 1
    model.learn(64, callback=HubCallback(probe_share=0))


def test_a_training_says_how_many_were_dropped_and_acts_as_the_good_source(capsys):
    np.random.seed(0)
    model = many(30, 11)
    watch = HubCallback(probe_share=0.9, verbose=1)
    model.learn(1900, callback=watch)
    said = watch.decisions[0].sentence
    assert "Of 30 sources 0 are dropped and 22 set aside, to be judged later" in said
    assert "rounds of 30, 15 sources took" in said
    assert "8 sources were left" in said
    assert said in capsys.readouterr().out
    assert model.policy.selection.evaluation_arm == 11


def waiting_model(*sources, **options):
    """A model whose first source is kept and whose others were set aside, the last the best."""
    model = aiming(*sources, judging_share=0.9, trial_share=0, **options)
    selection = model.policy.selection
    others = len(sources) - 1
    selection.judge([Fate.KEPT, *[Fate.SET_ASIDE] * others], [0.0, *map(float, range(others))])
    model.policy.follow_selection()
    return model


def test_the_best_source_is_found_even_where_halving_set_it_aside():
    np.random.seed(0)
    torch.manual_seed(0)
    model = waiting_model(always("kept", 0.0), always("poor", -0.9), always("good", 0.75))
    assert model.policy.method.trusted_pathways == [True, False, False, False]
    watch = HubCallback(probe_share=0)
    model.learn(1400, callback=watch)
    selection = model.policy.selection
    assert [selection.fate(source) for source in (0, 2)] == [Fate.KEPT, Fate.KEPT]
    assert model.policy.method.trusted_pathways == [True, False, True, False]
    assert [one.sentence for one in watch.decisions if "set aside" in one.sentence] == [
        "good, which halving had set aside, earns 38 in whole episodes, no less than the best "
        "source: it joins the hub."
    ]
    # Alone it was computed before it was trusted.
    assert selection.records.returns(2) == pytest.approx([38.0] * selection.records.count(2))
    assert selection.best_source == 2


def test_sources_that_wait_are_saved_with_the_model(tmp_path):
    model = waiting_model(always("kept", 0.0), always("good", 0.75))
    model.save(tmp_path / "model.zip")
    selection = PPO.load(tmp_path / "model.zip").policy.selection
    assert [selection.fate(source) for source in range(2)] == [Fate.KEPT, Fate.SET_ASIDE]
    assert selection.waiting == [1]
