"""Fixtures of the tests in this folder."""

import pytest
import torch
from stable_baselines3 import PPO, SAC
from untrained import FLAT, KEYS, draw, untrained

from hubrl import Hub


@pytest.fixture
def observations():
    return torch.as_tensor(draw(FLAT, 50))


@pytest.fixture
def hub():
    return Hub.from_agents(
        [untrained(PPO), untrained(SAC), untrained(PPO, actions=KEYS)],
        names=["z-first", "a-second", "m.third"],
    )
