"""Finished runs that tests of reports share."""

from pathlib import Path

from stable_baselines3 import PPO

from hubrl import Hub
from hubrl.experiments.run import start_run, train
from hubrl.formats.schema import write_yaml

PPO_KWARGS = {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}


def make_hub(folder: Path) -> Path:
    """A hub of two untrained agents of CartPole."""
    agents = [
        PPO("MlpPolicy", "CartPole-v1", seed=seed, policy_kwargs={"net_arch": [8]}, device="cpu")
        for seed in (0, 1)
    ]
    Hub.from_agents(agents, names=["one", "two"]).save(folder)
    return folder


def make_config(folder: Path, hub: Path, **fields) -> Path:
    plain = {
        "task": "CartPole-v1",
        "algorithm_kwargs": PPO_KWARGS,
        "steps": 1500,
        "probe_share": 0.2,
        "eval_every": 500,
        "eval_episodes": 2,
        "hub": str(hub),
        "seed": 1,
    }
    path = folder / "mine.yaml"
    path.write_text(write_yaml({**plain, **fields}))
    return path


def make_run(folder: Path, hub: Path, name: str, **fields) -> Path:
    run = start_run(make_config(folder, hub, **fields), [], folder / "runs", name)
    train(run)
    return run
