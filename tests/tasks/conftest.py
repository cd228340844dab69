"""Fixtures of the tests in this folder."""

import pytest

from hubrl.tasks.atari_vec_env import AtariVecEnv


@pytest.fixture(scope="module")
def breakout():
    env = AtariVecEnv("BreakoutNoFrameskip-v4", n_envs=2, seed=3)
    yield env
    env.close()
