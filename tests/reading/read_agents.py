"""Comparisons of a source with the model that it was read from."""

import numpy as np
import torch
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs


@torch.no_grad()
def value_of(model, observations):
    """What the original thinks its observations are worth; on critics, of its own action."""
    policy = model.policy
    tensor, _ = policy.obs_to_tensor(observations)
    if isinstance(model, OnPolicyAlgorithm):
        return policy.predict_values(tensor).squeeze(1)
    if isinstance(model, DQN):
        return policy.q_net(tensor).max(dim=1).values
    if isinstance(model, QRDQN):
        return policy.quantile_net(tensor).mean(dim=1).max(dim=1).values
    actions = policy._predict(tensor, deterministic=True)
    if isinstance(model, TQC):
        return policy.critic(tensor, actions).mean(dim=2).min(dim=1).values
    return torch.cat(policy.critic(tensor, actions), dim=1).min(dim=1).values


@torch.no_grad()
def outputs_of(source, model, observations, ask="value"):
    tensor, _ = model.policy.obs_to_tensor(observations)
    return getattr(source, ask)(
        preprocess_obs(
            tensor, model.observation_space, normalize_images=model.policy.normalize_images
        )
    )


def assert_alike(source, model, observations, seen=None):
    """The source acts on observations as the model does on what it sees of them, and values them alike."""
    seen = observations if seen is None else seen
    acted, _ = source.predict(observations, deterministic=True)
    expected, _ = model.predict(seen, deterministic=True)
    np.testing.assert_allclose(acted, expected, atol=1e-5)
    torch.testing.assert_close(
        outputs_of(source, model, observations), value_of(model, seen), atol=1e-4, rtol=1e-4
    )
