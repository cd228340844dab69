"""The probe: statistics on numbers made by hand, and races whose outcome is known."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import VECTOR, Toy, target, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, Source
from hubrl.evidence import DISTRUST, behind, errors_behind, still_racing, surely_behind
from hubrl.pathways import FRESH
from hubrl.solos import DOUBTED
from hubrl.trust import CLEARLY, ENOUGH, SEGMENT_STEPS, SEGMENTS, closeness, judge, play_segment, probe, promising, useful

LEVER = spaces.Box(-1.0, 1.0, (1,))
AIM = 0.8


class Aim(gym.Env):
    """The reward is how near the action comes to 0.8, one at most; episodes last 40 steps."""

    observation_space = VECTOR
    action_space = LEVER
    total = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.played = 0
        return self.np_random.normal(size=4).astype(np.float32), {}

    def step(self, action):
        self.played += 1
        self.total += 1
        return self.np_random.normal(size=4).astype(np.float32), 1 - abs(float(action[0]) - AIM), False, self.played >= 40, {}


class Ledge(Aim):
    """The same, but one in ten actions below zero is a fall, which costs up to 200 and ends the episode."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if action[0] < 0 and self.np_random.random() < 0.1:
            return observation, -float(self.np_random.uniform(0, 200)), True, truncated, info
        return observation, reward, terminated, truncated, info


class Cliff(Aim):
    """The same with a noise in which rewards are lost, and a cliff behind step 35: there, every action below a half is a fall."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        falls = self.played > 35 and action[0] < 0.5
        return observation, -50.0 if falls else reward + float(self.np_random.normal(0, 3)), falls, truncated, info


def always(name, action):
    """A source that does one thing."""
    head = torch.nn.Linear(4, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, action)
    return Source(encoder=torch.nn.Flatten(), head=head, name=name, observation_space=VECTOR, action_space=LEVER)


def racer(*sources, algorithm=PPO, n_envs=1, env_class=Aim, **options):
    env = make_vec_env(env_class, n_envs=n_envs, seed=0)
    return target(algorithm, env, Hub(sources).agent(algorithm, **options))


def test_behind_counts_standard_errors_of_the_difference():
    assert behind([1.0, 3.0], [4.0, 6.0]) == pytest.approx(3 / math.sqrt(2))
    assert behind([4.0, 6.0], [1.0, 3.0]) == pytest.approx(-3 / math.sqrt(2))
    assert behind([0.0, 2.0, 4.0], [10.0, 10.0]) == pytest.approx(8 / math.sqrt(4 / 3))


def test_behind_is_zero_for_equal_means_and_for_samples_of_one():
    assert behind([1.0, 3.0], [2.0, 2.0]) == 0.0
    assert behind([1.0], [100.0, 101.0]) == 0.0
    assert behind([1.0, 2.0], [100.0]) == 0.0
    assert behind([], []) == 0.0


def test_behind_is_infinite_where_nothing_varies_and_zero_for_ties():
    assert behind([1.0, 1.0], [2.0, 2.0]) == math.inf
    assert behind([2.0, 2.0], [1.0, 1.0]) == -math.inf
    assert behind([2.0, 2.0], [2.0, 2.0]) == 0.0


def test_small_samples_are_less_sure_by_students_distribution():
    """As unlikely as Student's t with the Welch-Satterthwaite degrees of freedom, to the accuracy of Wallace's approximation."""
    stats = pytest.importorskip("scipy.stats")
    for one, other in (([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), ([1.0, 2.0, 3.0, 9.0], [9.0, 9.5, 10.5]), ([5.0, 1.0] * 10, [9.0, 1.0] * 40)):
        unlikely = stats.ttest_ind(other, one, equal_var=False, alternative="greater").pvalue
        assert surely_behind(one, other) == pytest.approx(float(stats.norm.isf(unlikely)), rel=0.04)
        assert surely_behind(other, one) == -surely_behind(one, other)
    # By hand: t = 3 / sqrt(2 / 3), four degrees of freedom.
    assert surely_behind([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(33 / 35 * math.sqrt(4 * math.log1p(13.5 / 4)))
    assert surely_behind([1.0], [5.0, 6.0]) == 0.0
    assert surely_behind([1.0, 1.0], [2.0, 2.0]) == math.inf


def test_those_that_are_clearly_worse_than_the_best_leave_the_race():
    returns = {"low": [0.0, 0.1], "best": [10.0, 11.0], "near": [9.0, 11.0], "once": [0.0]}
    assert still_racing(returns) == ["best", "near", "once"]


def test_a_tie_without_variance_keeps_everybody_in_the_race():
    assert still_racing({"one": [2.0, 2.0], "two": [2.0, 2.0], "less": [1.0, 1.0]}) == ["one", "two"]


def test_a_source_does_what_untrained_networks_do_not_if_its_better_half_does():
    untrained = [0.0, 2.0, 4.0]
    error = 2.0 * math.sqrt(1 / 2 + 1 / 3)
    edge = 2.0 + CLEARLY * error
    assert useful([-99.0, edge - 1, edge + 1.1], untrained)
    assert not useful([-99.0, edge - 1, edge + 0.9], untrained)
    assert useful([-1300.0, 1300.0, -1300.0, 1300.0], untrained), "good for a part of the task"
    assert not useful([100.0], untrained)
    assert not useful([100.0, 100.0], [0.0])


def test_a_source_that_beats_untrained_networks_is_kept_and_starts_above_the_fresh_pathway():
    kept, start, *_ = judge({"good": [30.0, 31.0], "bad": [0.0, 1.0], FRESH: [4.0, 5.0]})
    assert kept == {"good": True, "bad": False, FRESH: True}
    assert start == {"good": 0.0, "bad": 0.0, FRESH: -DISTRUST}


def test_who_is_behind_starts_lower_by_as_many_standard_errors():
    returns = {"first": [30.0, 34.0], "second": [29.0, 31.0], FRESH: [0.0, 1.0]}
    lag = behind(returns["second"], returns["first"])
    assert 0 < lag < 2
    assert errors_behind(returns)["second"] == pytest.approx(lag)
    kept, start, *_ = judge(returns)
    assert kept["second"]
    assert start == {"first": 0.0, "second": pytest.approx(-lag), FRESH: -DISTRUST}


def test_a_source_that_is_near_the_best_stays_though_it_is_clearly_worse():
    returns = {"first": [30.0, 30.1], "near": [15.0, 15.1], "far": [10.0, 10.1], FRESH: [0.0, 1.0]}
    assert closeness(returns, "near") == pytest.approx(14.55 / 29.55)
    assert closeness({**returns, "never": []}, "never") == 0.0
    kept, start, *_ = judge(returns)
    assert kept == {"first": True, "near": False, "far": False, FRESH: True}
    kept, start, *_ = judge({**returns, "near": [16.0, 16.1]})
    assert kept == {"first": True, "near": True, "far": False, FRESH: True}
    assert start["near"] == -DISTRUST, "not below the fresh pathway"


def test_a_source_that_only_ties_with_untrained_networks_is_dropped():
    kept, start, *_ = judge({"same": [2.0, 2.0], FRESH: [2.0, 2.0]})
    assert kept == {"same": False, FRESH: True}
    assert start == {"same": 0.0, FRESH: 0.0}


def test_a_source_that_beats_untrained_networks_not_clearly_is_dropped():
    kept, *_ = judge({"noisy": [0.0, 4.0], FRESH: [1.0, 2.0]})
    assert not kept["noisy"]


def test_a_source_that_is_above_untrained_networks_not_clearly_is_in_doubt_where_there_may_be_doubt():
    returns = {"good": [30.0, 31.0], "near": [18.0, 20.0], "bad": [-29.0, -9.0], FRESH: [-20.0, 4.0]}
    assert promising(returns["near"], returns[FRESH])
    assert not useful(returns["near"], returns[FRESH])
    assert not promising(returns["bad"], returns[FRESH]), "-9 against -8"
    assert promising([22.0, 22.0], [22.0, 22.0, 18.0]), "a segment in which some untrained networks did not fall either"
    assert not promising([1.0], [])
    for without in ({"ended": True}, {"decidable": True}):
        kept, _, doubted, _ = judge(returns, **without)
        assert doubted == []
        assert kept == {"good": False, "near": False, "bad": False, FRESH: True}
    kept, start, doubted, _ = judge(returns, ended=True, decidable=True)
    assert doubted == ["good", "near"]
    assert kept == {"good": True, "near": True, "bad": False, FRESH: True}
    assert start == {"good": -DISTRUST, "near": -DISTRUST, "bad": 0.0, FRESH: 0.0}, "the fresh pathway first"


def test_sources_that_tie_with_untrained_networks_in_every_segment_are_in_doubt():
    returns = {"silent": [0.0, 0.0], "noisy": [-1.0, 0.0], FRESH: [0.0, 0.0]}
    kept, start, doubted, _ = judge(returns, decidable=True)
    assert doubted == ["silent"]
    assert kept == {"silent": True, "noisy": False, FRESH: True}
    assert start == {"silent": -DISTRUST, "noisy": 0.0, FRESH: 0.0}
    assert judge(returns).doubted == []


def test_where_no_episode_ended_yet_the_promising_are_set_aside():
    returns = {"good": [30.0, 31.0], "bad": [-29.0, -9.0], "clear": [900.0, 910.0], FRESH: [-20.0, 4.0]}
    judged = judge({name: segments for name, segments in returns.items() if name != "clear"}, decidable=True)
    assert judged.aside == ["good"]
    assert judged.doubted == []
    assert judged.kept == {"good": False, "bad": False, FRESH: True}
    assert judge(returns, ended=True, decidable=True).aside == []
    assert judge(returns).aside == [], "no whole episodes will decide"
    tie = {"silent": [0.0, 0.0], FRESH: [0.0, 0.0]}
    assert judge(tie, decidable=True).aside == [], "in doubt already"


def test_one_sample_is_not_enough_to_be_trusted():
    kept, *_ = judge({"once": [100.0], FRESH: [0.0, 0.1]})
    assert not kept["once"]


def test_without_a_fresh_pathway_whoever_is_racing_is_kept():
    kept, start, *_ = judge({"good": [10.0, 11.0], "bad": [0.0, 1.0]})
    assert kept == {"good": True, "bad": False}
    assert start == {"good": 0.0, "bad": 0.0}


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_probe_keeps_the_good_source_and_drops_the_bad_one(n_envs):
    model = racer(always("bad", -0.9), always("good", 0.75), n_envs=n_envs)
    counted = []
    verdict = probe(model, 900, counted.append)
    assert verdict.judged.kept == {"bad": False, "good": True, FRESH: True}
    assert verdict.steps == sum(counted) <= 900
    assert all(len(returns) >= ENOUGH for returns in verdict.returns.values())
    assert np.mean(verdict.returns["good"]) > np.mean(verdict.returns[FRESH]) > np.mean(verdict.returns["bad"])
    method = model.policy.method
    assert method.get_buffer("trusted").tolist() == [False, True, True]
    assert method.router.mean.bias.tolist() == [0.0, 0.0, -DISTRUST]
    weights = model.policy.route(torch.randn(5, 4)).weights
    assert (weights[:, 0] == 0).all()
    assert (weights[:, 1] > 0.97).all()


def test_where_all_sources_are_bad_the_fresh_pathway_stays_alone():
    model = racer(always("bad", -0.9), always("worse", -1.0))
    verdict = probe(model, 600)
    assert verdict.judged.kept == {"bad": False, "worse": False, FRESH: True}
    assert model.policy.fresh_alone
    model.learn(32)


def test_a_race_that_is_decided_early_leaves_steps_to_training():
    verdict = probe(racer(always("bad", -1.0), always("good", 0.8)), 1200)
    assert verdict.steps < 1200


def test_a_budget_too_small_for_a_race_changes_nothing():
    model = racer(always("bad", -0.9), always("good", 0.75))
    least = SEGMENTS * 3 * SEGMENT_STEPS[0]
    assert probe(model, least - 1) is None
    assert model.policy.method.awaits_probe
    assert probe(model, least) is not None
    assert not model.policy.method.awaits_probe


def test_a_model_that_hears_features_cannot_be_probed():
    env = Toy()
    with pytest.raises(BadConfig, match="A probe needs a model that hears the sources' outputs"):
        probe(target(PPO, env, tiny_hub(env).agent(PPO, level="features")), 1000)


def test_a_segments_return_ends_with_the_episode_and_is_in_true_rewards():
    model = racer(always("good", AIM), source_std=1e-6)
    (alone,), ended = play_segment(model.policy, model.get_env(), ["good"], 100, lambda steps: None)
    assert not ended, "a limit of time is no end"
    assert alone == pytest.approx(40.0, abs=1e-3)
    env = VecNormalize(make_vec_env(Aim, n_envs=2, seed=0))
    model = target(PPO, env, Hub([always("good", AIM), always("bad", -0.2)]).agent(PPO, source_std=1e-6))
    returns, _ = play_segment(model.policy, env, ["good", "bad"], 30, lambda steps: None)
    assert returns == pytest.approx([30.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])
def test_the_callback_probes_once_and_counts_the_steps(algorithm):
    model = racer(always("bad", -0.9), always("good", 0.75), algorithm=algorithm)
    watch = HubCallback(probe_share=0.9)
    model.learn(350, callback=watch)
    assert 0 < watch.verdict.steps <= 315
    assert watch.verdict.judged.kept["good"]
    assert not watch.verdict.judged.kept["bad"]
    assert 350 <= model.num_timesteps < 350 + 32
    assert model.get_env().get_attr("total") == [model.num_timesteps]
    again = HubCallback(probe_share=0.5)
    model.learn(64, callback=again, reset_num_timesteps=False)
    assert again.verdict is None


def test_where_episodes_can_end_early_whole_episodes_settle_what_a_probe_doubts(capsys):
    model = racer(always("poor", 0.3), always("good", 0.8), env_class=Ledge, n_envs=2, solo_share=0.2)
    watch = HubCallback(probe_share=0.1, verbose=1)
    model.learn(6000, callback=watch)
    assert watch.verdict.judged.doubted == ["poor", "good"]
    told = capsys.readouterr().out
    assert "segments, in doubt" in told
    assert "steps: poor kept, good kept, fresh kept" in told
    solos = model.policy.solos
    assert not bool(solos.get_buffer("doubted").any())
    assert int(solos.standing.get_buffer("counts")[1]) >= DOUBTED
    assert model.policy.method.trusted_pathways[1]
    assert solos.standing.worth[1] > 30


def test_who_was_set_aside_comes_back_in_doubt_once_an_episode_ends_early(capsys):
    model = racer(always("bad", -0.9), always("good", 0.8), env_class=Cliff, n_envs=2, solo_share=0.2)
    watch = HubCallback(probe_share=0.1, verbose=1)
    model.learn(6000, callback=watch)
    assert watch.verdict.segment < 35
    assert watch.verdict.judged.aside == ["good"]
    assert watch.verdict.judged.kept == {"bad": False, "good": False, FRESH: True}
    told = capsys.readouterr().out
    assert "segments, dropped, unless an episode ends early" in told
    assert "steps: bad dropped, good kept, fresh kept" in told
    solos = model.policy.solos
    assert int(solos.standing.get_buffer("counts")[1]) >= DOUBTED
    assert not bool(solos.get_buffer("doubted").any())
    assert model.policy.method.trusted_pathways == [False, True, True]


def test_who_was_set_aside_stays_away_for_as_long_as_no_episode_ends_early():
    model = racer(always("fair", 0.3), n_envs=2, solo_share=0.2)
    solos = model.policy.solos
    solos.believe([0.0, 0.0], aside=["fair"])
    assert solos.taken_back([False, True]) is None
    solos.see_early_end()
    solos.remaining = 0.8
    assert solos.taken_back([False, True]) is None, "too late for whole episodes"
    solos.remaining = 0.9
    assert solos.taken_back([False, True]) == ([True, True], [-DISTRUST, 0.0])
    assert solos.get_buffer("doubted").tolist() == [True, False]
    assert solos.taken_back([True, True]) is None, "once"


def test_without_solos_nobody_is_in_doubt():
    model = racer(always("good", 0.8), env_class=Ledge, n_envs=2, solo_share=0.0)
    assert probe(model, 600).judged.doubted == []


def test_no_share_means_no_probe():
    model = racer(always("bad", -0.9), always("good", 0.75))
    watch = HubCallback(probe_share=0.0)
    model.learn(64, callback=watch)
    assert watch.verdict is None
    assert model.policy.method.awaits_probe


def test_a_probe_prints_what_it_found_out_if_asked(capsys):
    racer(always("bad", -0.9), always("good", 0.75)).learn(350, callback=HubCallback(probe_share=0.9, verbose=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Probe: ")
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["bad", "good", FRESH]
    assert lines[1].endswith("dropped")
    assert lines[2].endswith("kept")
