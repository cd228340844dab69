"""Returns of whole episodes: Monitor's, of whole games, before normalisation, and only of what was seen whole."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import Toy

from hubrl.training.episodes import EpisodeReturns


class Ones(Toy):
    """Every step earns one."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


def played(env, steps, *, whole=True, now=0):
    """Everything that ended in some steps of an environment."""
    returns = EpisodeReturns(env, now, whole=whole)
    env.reset()
    finished = []
    for step in range(1, steps + 1):
        _, rewards, dones, infos = env.step(
            np.array([env.action_space.sample() for _ in range(env.num_envs)])
        )
        finished += returns.step(rewards, dones, infos, now + step * env.num_envs)
    return returns, finished


@pytest.mark.parametrize("wrapper", [Monitor, lambda env: env], ids=["monitored", "bare"])
def test_every_environments_episode_has_its_own_return(wrapper):
    env = DummyVecEnv([lambda: wrapper(Ones(length=4)), lambda: wrapper(Ones(length=6))])
    returns, finished = played(env, 12)
    assert [(one.env, one.value) for one in finished] == [
        (0, 4.0),
        (1, 6.0),
        (0, 4.0),
        (0, 4.0),
        (1, 6.0),
    ]
    assert [one.began for one in finished] == [0, 0, 8, 16, 12]
    assert returns.sums.tolist() == [0.0, 0.0]


class Clipped(gym.RewardWrapper):
    """What an agent learns from, and not what it earns."""

    def reward(self, reward):
        return 0.1 * reward


def test_monitors_return_is_the_one_that_counts():
    env = DummyVecEnv([lambda: Clipped(Monitor(Ones(length=5)))])
    _, finished = played(env, 5)
    assert [one.value for one in finished] == [5.0]


def test_rewards_count_as_they_were_before_vecnormalize():
    env = VecNormalize(DummyVecEnv([lambda: Ones(length=5)]))
    _, finished = played(env, 20)
    assert [one.value for one in finished] == [5.0] * 4


def test_an_episode_that_was_not_seen_from_its_beginning_is_not_whole():
    env = make_vec_env(lambda: Ones(length=4), n_envs=2, seed=0)
    _, finished = played(env, 8, whole=False, now=100)
    assert [one.whole for one in finished] == [False, False, True, True]
    assert [one.began for one in finished] == [100, 100, 108, 108]


def test_a_round_takes_as_long_as_episodes_do_in_all_environments():
    env = make_vec_env(lambda: Ones(length=4), n_envs=3, seed=0)
    returns, _ = played(env, 3)
    assert returns.round_steps == np.inf, "none has ended"
    returns, _ = played(env, 9)
    assert returns.round_steps == 12


class Lives(gym.Env):
    """A game of three lives with five steps and a reward of seven each, as the ALE has them."""

    observation_space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.ale = self
        self.left, self.played = 3, 0

    def lives(self):
        return self.left

    def get_action_meanings(self):
        return ["NOOP", "UP"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.played = 3, 0
        return np.zeros((210, 160, 3), np.uint8), {}

    def step(self, action):
        self.played += 1
        lost = self.played % 5 == 0
        self.left -= lost
        return np.zeros((210, 160, 3), np.uint8), 7.0 * lost, self.left == 0, False, {}


def test_a_lost_life_ends_no_episode():
    env = DummyVecEnv(
        [lambda: AtariWrapper(Monitor(Lives()), noop_max=0, frame_skip=1, screen_size=36)]
    )
    returns = EpisodeReturns(env, 0, whole=True)
    env.reset()
    finished, dones = [], 0
    for step in range(1, 40):
        _, rewards, done, infos = env.step(np.array([0]))
        dones += int(done[0])
        finished += returns.step(rewards, done, infos, step)
    assert dones >= 3 * len(finished) > 0
    assert {one.value for one in finished} == {21.0}, (
        "whole games, and their rewards before clipping"
    )
    assert returns.round_steps > 10
