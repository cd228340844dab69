"""Fixtures of the tests in this folder."""

import pytest
from stable_baselines3 import PPO
from untrained import untrained

from hubrl import Hub


@pytest.fixture(scope="session")
def agent_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    untrained(PPO).save(path)
    return path.read_bytes()


@pytest.fixture
def agent(tmp_path, agent_bytes):
    """A good agent's zip."""
    path = tmp_path / "agent.zip"
    path.write_bytes(agent_bytes)
    return path


@pytest.fixture
def hub(tmp_path):
    """A good hub's folder, with one source called `good`."""
    Hub.from_agents([untrained(PPO)], names=["good"]).save(tmp_path / "hub")
    return tmp_path / "hub"
