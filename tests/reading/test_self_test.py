"""The self-test of reading: SB3's own policy, rebuilt from a zip, computes what the source does."""

import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from torch import nn
from untrained import ARM, FLAT, IMAGE, KEYS, untrained

from hubrl import BadFile, load_agent
from hubrl.reading import sb3_archive, sb3_zip, self_test

PARTS = spaces.Dict(camera=IMAGE, joints=FLAT, mode=spaces.Discrete(3))

WIDE = spaces.Box(-2.0, 5.0, (2,))

AGENTS = {
    **{
        f"{algorithm.__name__} of {form}": (algorithm, space, KEYS if discrete else ARM, {})
        for form, space in (("vectors", FLAT), ("parts", PARTS))
        for algorithms, discrete in (
            ((PPO, A2C, TRPO, SAC, TQC, TD3, DDPG), False),
            ((MaskablePPO, DQN, QRDQN), True),
        )
        for algorithm in algorithms
    },
    "wide bounds": (SAC, FLAT, WIDE, {}),
    "gSDE": (PPO, FLAT, WIDE, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "gSDE of SAC": (SAC, FLAT, WIDE, {"use_sde": True}),
    "several choices": (PPO, FLAT, spaces.MultiDiscrete([2, 3]), {}),
    "bits": (PPO, FLAT, spaces.MultiBinary(3), {}),
    "raw images": (PPO, IMAGE, KEYS, {
        "policy": "CnnPolicy",
        "policy_kwargs": {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 8}},
    }),
    "two extractors": (A2C, PARTS, KEYS, {
        "policy_kwargs": {"share_features_extractor": False, "activation_fn": nn.ELU}
    }),
}  # fmt: skip


def saved(tmp_path, algorithm, observations, actions, given):
    path = tmp_path / "agent.zip"
    untrained(algorithm, observations, actions, **given).save(path)
    return path


@pytest.mark.parametrize("agent", AGENTS)
def test_the_policy_of_a_zip_is_rebuilt_and_compared(agent, tmp_path, monkeypatch):
    compared = []
    same = self_test.same_outputs
    monkeypatch.setattr(self_test, "same_outputs", lambda *given: compared.append(same(*given)))
    load_agent(saved(tmp_path, *AGENTS[agent]))
    assert compared == [True]


def test_a_fault_of_reading_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, PPO, FLAT, ARM, {"policy_kwargs": {"activation_fn": nn.ELU}})
    load_agent(path)
    monkeypatch.setitem(sb3_archive.ACTIVATION_NAMES, "ELU", "relu")
    with pytest.raises(BadFile, match="'agent' computes other actions in SB3 than hubrl reads"):
        load_agent(path)


def test_the_self_test_draws_no_random_numbers(tmp_path, monkeypatch):
    path, states = saved(tmp_path, DQN, FLAT, KEYS, {}), []
    for tested in (True, False):
        if not tested:
            monkeypatch.setattr(sb3_zip, "check_against_sb3", lambda *given: None)
        torch.manual_seed(0)
        load_agent(path)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
