"""Good files of every kind, as small as they come; the harness bends them."""

import sys
from pathlib import Path

import safetensors.torch
import torch
import yaml
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

sys.path.insert(0, str(Path(__file__).parents[1]))

from untrained import FLAT, IMAGE, KEYS, Noise, normalised, untrained

from hubrl import Hub, HubCallback
from hubrl.experiments.run import start_run, train


def make_seeds(folder: Path) -> None:
    """Write the seeds: agents, agents with statistics, hub-trained agents, a hub, bare weights."""
    for name in ("zip", "statistics", "trained", "bare", "nested", "policy", "config", "run"):
        (folder / name).mkdir(parents=True)
    zips = {
        "ppo": untrained(PPO),
        "image": untrained(
            PPO,
            IMAGE,
            KEYS,
            "CnnPolicy",
            policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        ),
        "dict": untrained(
            PPO, spaces.Dict(a=FLAT, b=spaces.Discrete(3)), spaces.MultiDiscrete([2, 3])
        ),
        "td3": untrained(TD3),
        "sde": untrained(SAC, use_sde=True),
        "dqn": untrained(DQN, actions=KEYS),
        "qrdqn": untrained(QRDQN, actions=KEYS),
        "tqc": untrained(TQC),
        "masked": untrained(MaskablePPO, FLAT, spaces.MultiBinary(3)),
    }
    for name, model in zips.items():
        model.save(folder / "zip" / name)
    untrained(PPO).save(folder / "statistics" / "flat")
    normalised().save(str(folder / "statistics" / "flat.vecnormalize.pkl"))
    parts = spaces.Dict(a=FLAT, b=FLAT)
    untrained(PPO, parts).save(folder / "statistics" / "parts")
    normalised(parts).save(str(folder / "statistics" / "parts.vecnormalize.pkl"))
    untrained(PPO).policy.save(folder / "policy" / "ppo.pt")
    untrained(DQN, parts, KEYS).policy.save(folder / "policy" / "dqn.pt")
    Hub.from_agents([folder / "statistics" / "flat.zip"], names=["good"]).save(folder / "hub")
    _make_trained(folder / "trained")
    _make_bare(folder)
    _make_run(folder)


def _make_trained(folder: Path) -> None:
    hub = Hub.from_agents([untrained(PPO), untrained(A2C)], names=["one", "two"])
    model = PPO(env=Noise(), **hub.agent(PPO), n_steps=8, batch_size=8, device="cpu")
    model.learn(16, callback=HubCallback())
    model.save(folder / "outputs")
    model = SAC(
        "MlpPolicy", Noise(), policy_kwargs=hub.policy_kwargs(), buffer_size=8, device="cpu"
    )
    model.save(folder / "features")


def _make_bare(folder: Path) -> None:
    card = yaml.safe_load((folder / "hub" / "good.yaml").read_text())
    card.pop("sha256")
    tensors = safetensors.torch.load_file(folder / "hub" / "good.safetensors")
    for name, zipped in (("new.pth", True), ("old.pt", False)):
        torch.save(tensors, folder / "bare" / name, _use_new_zipfile_serialization=zipped)
        (folder / "bare" / name).with_suffix(".yaml").write_text(yaml.safe_dump(card))
    parts = ({name: tensors[name] for name in tensors}, {"fc.bias": torch.zeros(3)})
    torch.save(parts, folder / "nested" / "tuple.pt")
    nested = {**card, "weights": {name: f"0.{name}" for name in tensors}}
    (folder / "nested" / "tuple.yaml").write_text(yaml.safe_dump(nested))
    safetensors.torch.save_file(tensors, folder / "bare" / "safe.safetensors")
    (folder / "bare" / "safe.yaml").write_text(yaml.safe_dump(card))


def _make_run(folder: Path) -> None:
    """A config, a study, and a finished run with statistics, a probe and a checkpoint."""
    agents = [
        PPO("MlpPolicy", "CartPole-v1", seed=seed, policy_kwargs={"net_arch": [4]}, device="cpu")
        for seed in (0, 1)
    ]
    Hub.from_agents(agents, names=["one", "two"]).save(folder / "config" / "hub")
    config = {
        "task": "CartPole-v1",
        "algorithm_kwargs": {"n_steps": 64, "batch_size": 32, "policy_kwargs": {"net_arch": [4]}},
        "normalize": True,
        "steps": 1500,
        "probe_share": 0.2,
        "eval_every": 500,
        "eval_episodes": 2,
        "hub": "hub",
    }
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    study = {
        "seeds": [1, 2],
        "agents": {"one": {"agent": "random:0", "observes": [0, 1]}, "two": {"agent": "a.zip"}},
        "hubs": {"both": ["one", "two"]},
        "methods": {"scratch": {"set": {"method": "scratch"}}, "hub": {"each_source": True}},
        "cases": {"short": {"hub": "both", "methods": ["scratch", "hub"], "set": {"steps": 100}}},
        "set": {"task": "CartPole-v1"},
    }
    (folder / "config" / "study.yaml").write_text(yaml.safe_dump(study))
    run = start_run(folder / "config" / "config.yaml", [], folder / "run", "mine")
    train(run)
