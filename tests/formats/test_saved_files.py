"""File formats outlive the code: what version 0.1 wrote is read, and says what it said then.

`tests/formats/saved/0.1/` is written by `python tests/formats/test_saved_files.py`, anew for each format of before the first release.
"""

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO

from hubrl import Hub, HubCallback, load_agent

SAVED = Path(__file__).parent / "saved"

VERSIONS = sorted(path.name for path in SAVED.iterdir() if path.is_dir()) if SAVED.is_dir() else []

TINY = {"net_arch": [4]}


def observations():
    return np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hub_of_an_older_version_is_loaded_and_acts_as_it_did(version):
    computed = np.load(SAVED / version / "actions.npz")
    for source in Hub.load(SAVED / version / "hub"):
        np.testing.assert_array_equal(
            source.predict(observations(), deterministic=True)[0], computed[source.name]
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["outputs", "features"])
def test_a_target_of_an_older_version_is_loaded_and_acts_as_it_did(version, name):
    computed = np.load(SAVED / version / "actions.npz")
    agent = load_agent(SAVED / version / f"{name}.zip")
    np.testing.assert_array_equal(
        agent.predict(observations(), deterministic=True)[0], computed[name]
    )


def test_some_version_is_kept():
    assert VERSIONS


def write(folder: Path) -> None:
    """Write what this version writes."""
    folder.mkdir(parents=True)
    agents = [
        algorithm("MlpPolicy", "CartPole-v1", seed=1, device="cpu", policy_kwargs=TINY)
        for algorithm in (PPO, DQN)
    ]
    hub = Hub.from_agents(agents, names=["ppo", "dqn"])
    hub.save(folder / "hub")
    made = hub.agent(PPO, top_k=2, hidden_dim=4)
    outputs = PPO(
        made["policy"],
        "CartPole-v1",
        n_steps=64,
        seed=1,
        device="cpu",
        policy_kwargs={**TINY, **made["policy_kwargs"]},
    )
    features = DQN(
        "MlpPolicy",
        "CartPole-v1",
        seed=1,
        device="cpu",
        policy_kwargs={**TINY, **hub.policy_kwargs(hidden_dim=4, width=4)},
        learning_starts=32,
        buffer_size=200,
    )
    computed = {
        source.name: source.predict(observations(), deterministic=True)[0] for source in hub
    }
    for name, model in {"outputs": outputs, "features": features}.items():
        model.learn(256, callback=HubCallback(probe_share=0))
        model.save(folder / f"{name}.zip")
        computed[name] = model.predict(observations(), deterministic=True)[0]
    np.savez(folder / "actions.npz", **computed)


if __name__ == "__main__":
    write(SAVED / "0.1")
