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


def make_seeds(folder: Path) -> None:
    """Write the seeds: agents, agents with statistics, hub-trained agents, a hub, bare weights."""
    for name in ("zip", "statistics", "trained", "bare", "policy"):
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
    safetensors.torch.save_file(tensors, folder / "bare" / "safe.safetensors")
    (folder / "bare" / "safe.yaml").write_text(yaml.safe_dump(card))
