"""The probe: races whose outcome is known, and what a training does with it."""

import numpy as np
import pytest
import torch
from hubs import AIM, Aim, aiming, always
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import SETTINGS, TINY, Toy, target, tiny_hub

from hubrl import BadConfig, Hub, HubCallback
from hubrl.routing.pathways import FRESH
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.selection.settings import TrustSettings
from hubrl.training.probe import SEGMENT_STEPS, SEGMENTS, play_segment, probe


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_probe_keeps_the_good_source_and_drops_the_bad_one(n_envs):
    model = aiming(always("bad", -1.0), always("good", 0.75), n_envs=n_envs)
    result = probe(model, 900)
    assert result.fates == {"bad": Fate.DROPPED, "good": Fate.KEPT}
    assert result.kept == {"bad": False, "good": True, FRESH: True}
    assert model.get_env().get_attr("total") == [result.steps // n_envs] * n_envs
    assert result.steps <= 900
    assert all(len(returns) >= SEGMENTS for returns in result.returns.values())
    assert (
        np.mean(result.returns["good"])
        > np.mean(result.returns[FRESH])
        > np.mean(result.returns["bad"])
    )
    method = model.policy.method
    assert method.get_buffer("trusted").tolist() == [False, True, False], (
        "the fresh pathway acts in its trial alone"
    )
    weights = model.policy.route(torch.randn(5, 4)).weights
    assert weights.tolist() == [[0.0, 1.0, 0.0]] * 5


def test_a_source_at_the_level_of_untrained_networks_is_not_dropped():
    result = probe(aiming(always("level", 0.0), always("good", 0.75)), 900)
    assert result.fates["level"] in (Fate.DEFERRED, Fate.DOUBTED)
    assert result.kept["level"]


def test_where_all_sources_are_bad_the_fresh_pathway_is_alone():
    model = aiming(always("bad", -1.0), always("worse", -1.0))
    assert set(probe(model, 600).fates.values()) == {Fate.DROPPED}
    assert model.policy.fresh_alone
    assert model.policy.selection.trial.at is Phase.ALONE
    model.learn(32)


def test_a_budget_too_small_for_a_race_changes_nothing():
    model = aiming(always("bad", -1.0), always("good", 0.75))
    least = SEGMENTS * 3 * SEGMENT_STEPS[0]
    assert probe(model, least - 1) is None
    assert model.policy.method.awaits_probe
    assert probe(model, least).segment == SEGMENT_STEPS[0]
    assert not model.policy.method.awaits_probe


def test_a_model_that_mixes_features_cannot_be_probed():
    env = Toy()
    with pytest.raises(
        BadConfig,
        match="A probe needs a model that aggregates the sources' outputs and has an environment",
    ):
        probe(target(PPO, env, tiny_hub(env).agent(PPO, level="features")), 1000)


def test_a_segments_return_ends_with_the_episode_and_is_in_true_rewards():
    model = aiming(always("good", AIM), source_std=1e-6)
    (alone,) = play_segment(model.policy, model.get_env(), ["good"], 100)
    assert alone == pytest.approx(40.0, abs=1e-3)
    env = VecNormalize(make_vec_env(Aim, n_envs=2, seed=0))
    model = target(
        PPO, env, Hub([always("good", AIM), always("bad", -0.2)]).agent(PPO, source_std=1e-6)
    )
    returns = play_segment(model.policy, env, ["good", "bad"], 30)
    assert returns == pytest.approx([30.0, 0.0], abs=1e-3)


def test_every_segment_has_an_untrained_network_of_its_own_drawn_by_the_seed():
    model = aiming(always("good", AIM), n_envs=2)
    play = lambda seed: play_segment(model.policy, model.get_env(), [FRESH, FRESH], 40, seed=seed)  # noqa: E731
    before = torch.get_rng_state()
    torch.manual_seed(0)
    first = play(1)
    assert abs(first[0] - first[1]) > 0.01
    torch.set_rng_state(before)
    fresh = model.policy.action_net.weight.detach().clone()
    play(2)
    assert torch.equal(fresh, model.policy.action_net.weight), (
        "the one that is to be trained does not play"
    )


@pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])
def test_the_callback_probes_once_and_counts_the_steps(algorithm):
    model = aiming(always("bad", -1.0), always("good", 0.75), algorithm=algorithm)
    watch = HubCallback(probe_share=0.9)
    model.learn(350, callback=watch)
    assert 0 < watch.probe_result.steps <= 315
    assert watch.probe_result.kept == {"bad": False, "good": True, FRESH: True}
    assert 350 <= model.num_timesteps < 350 + 32
    assert model.get_env().get_attr("total") == [model.num_timesteps]
    again = HubCallback(probe_share=0.5)
    model.learn(64, callback=again, reset_num_timesteps=False)
    assert again.probe_result is None


def test_no_share_means_no_probe_and_whole_episodes_decide():
    model = aiming(always("bad", -1.0), always("good", 0.75))
    watch = HubCallback(probe_share=0.0)
    model.learn(64, callback=watch)
    assert watch.probe_result is None
    assert model.policy.selection.trial.at is Phase.DOUBT
    assert model.policy.selection.unplayed != []


def test_a_verbose_probe_prints_what_it_measured(capsys):
    aiming(always("bad", -1.0), always("good", 0.75)).learn(
        350, callback=HubCallback(probe_share=0.9, verbose=1)
    )
    lines = capsys.readouterr().out.splitlines()
    assert "Probe: " in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["bad", "good", FRESH]
    assert lines[1].endswith("dropped: clearly no better than untrained networks")
    assert lines[2].endswith("kept: clearly better than untrained networks")


def test_without_whole_episodes_only_what_is_clear_is_kept():
    """`judging_share=0` leaves out selection, so that nothing would settle a doubt."""
    model = aiming(
        always("bad", -1.0), always("level", 0.1), always("good", 0.75), judging_share=0.0
    )
    fates = probe(model, 1200).fates
    assert fates["level"] in (Fate.DEFERRED, Fate.DOUBTED)
    assert model.policy.method.get_buffer("trusted").tolist() == [False, False, True, True]
    assert model.policy.method.router.mean.bias.tolist()[2:] == [0.0, -TrustSettings().most_lag]


class SameStart(BaseCallback):
    """Lets a training go on from a start that two have in common; behind HubCallback."""

    def __init__(self):
        super().__init__()
        self.rewards = []

    def _on_rollout_start(self):
        if self.rewards:
            return
        self.training_env.seed(7)
        self.model._last_obs = self.training_env.reset()
        torch.manual_seed(7)
        np.random.seed(7)

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.rewards.append(self.model.rollout_buffer.rewards.copy())


@pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])
def test_behind_a_probe_that_dropped_every_source_training_is_from_scratch_bit_for_bit(algorithm):
    ours = aiming(always("bad", -1.0), algorithm=algorithm)
    seen, watch = SameStart(), HubCallback(probe_share=0.5)
    ours.learn(600, callback=[watch, seen])
    assert watch.probe_result.fates == {"bad": Fate.DROPPED}
    plain = algorithm(
        "MlpPolicy",
        make_vec_env(Aim, seed=0),
        seed=0,
        device="cpu",
        policy_kwargs=dict(TINY),
        **SETTINGS[algorithm],
    )
    expected = SameStart()
    plain.learn(600 - watch.probe_result.steps, callback=expected)
    assert len(expected.rewards) == len(seen.rewards) >= 8
    assert all(
        np.array_equal(one, other)
        for one, other in zip(expected.rewards, seen.rewards, strict=True)
    )
    parameters = ours.policy.state_dict()
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(tensor, parameters[name]), name
