"""Pathway weights of a model for an observation."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs

from hubrl.errors import BadConfig
from hubrl.methods.base import Method
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.extractor import HubExtractor, parts_in
from hubrl.policies.on_policy.policy import HubActorCriticPolicy


@torch.no_grad()
def pathway_weights(
    model: BaseAlgorithm, observation: np.ndarray | dict[str, np.ndarray]
) -> dict[str, float | np.ndarray]:
    """Weight of every pathway by name, without the router's noise.

    Args:
        model: A model that learns through a hub.
        observation: One observation, or a batch, as the model's `predict` takes it.

    Returns:
        A number for one observation, an array `(batch,)` for a batch; they sum to one.

    Raises:
        BadConfig: If the model has no hub, or its method no weights.
    """
    policy = model.policy
    if isinstance(policy, HubDQNPolicy):
        return _of_dqn(policy, observation)
    kinds = HubActorCriticPolicy | HubExtractor
    routing = next((part for part in policy.modules() if isinstance(part, kinds)), None)
    if routing is None:
        raise BadConfig(
            f"The {type(model).__name__} given learns through no hub; make one with Hub.agent or "
            "Hub.policy_kwargs."
        )
    policy.set_training_mode(False)
    tensor, batched = policy.obs_to_tensor(observation)
    observations: Any = preprocess_obs(
        tensor, policy.observation_space, normalize_images=policy.normalize_images
    )
    weights = routing.route(observations).weights
    if weights is None:
        raise BadConfig(f"Method {routing.spec.method!r} has no pathway weights.")
    rows = weights.cpu().numpy()
    names = parts_in(routing, Method)[0].pathways.names  # type: ignore[type-abstract]
    if batched:
        return {name: rows[:, index] for index, name in enumerate(names)}
    return {name: float(rows[0, index]) for index, name in enumerate(names)}


def _of_dqn(
    policy: HubDQNPolicy, observation: np.ndarray | dict[str, np.ndarray]
) -> dict[str, float | np.ndarray]:
    """Weight one for the pathway that acts in evaluation."""
    tensor, batched = policy.obs_to_tensor(observation)
    n_rows = len(next(iter(tensor.values())) if isinstance(tensor, dict) else tensor)
    acting = policy.selection.evaluation_arm
    each = {name: float(index == acting) for index, name in enumerate(policy.pathways.names)}
    return {name: np.full(n_rows, one) if batched else one for name, one in each.items()}
