"""Fixtures of the tests in this folder."""

import pytest
from stable_baselines3 import PPO
from untrained import untrained

from hubrl import Hub


@pytest.fixture
def agent(tmp_path):
    """A good agent's zip."""
    path = tmp_path / "agent.zip"
    untrained(PPO).save(path)
    return path


@pytest.fixture
def hub(tmp_path):
    """A good hub's folder, with one source called `good`."""
    Hub.from_agents([untrained(PPO)], names=["good"]).save(tmp_path / "hub")
    return tmp_path / "hub"
