"""Pathway weights of a model for an observation."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs

from hubrl.errors import BadConfig
from hubrl.extractor import HubExtractor, parts_in
from hubrl.methods.base import Method
from hubrl.policies import HubActorCriticPolicy
from hubrl.q_policies import HubDQNPolicy


@torch.no_grad()
def pathway_weights(model: BaseAlgorithm, observation: np.ndarray | dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    """Who speaks here: every pathway's weight by name, without the router's noise.

    Args:
        model: A model that learns through a hub.
        observation: One observation, or a batch, as the model's `predict` takes it.

    Returns:
        One number a pathway for one observation, an array `(batch,)` for a batch; they sum to one.

    Raises:
        BadConfig: If the model learns through no hub.
    """
    policy = model.policy
    if isinstance(policy, HubDQNPolicy):
        seen, batched = policy.obs_to_tensor(observation)
        rows = len(next(iter(seen.values())) if isinstance(seen, dict) else seen) if batched else None
        acts = {name: float(index == policy.selection.evaluation_arm) for index, name in enumerate(policy.pathways.names)}
        return {name: one if rows is None else np.full(rows, one) for name, one in acts.items()}
    hears = next((part for part in policy.modules() if isinstance(part, HubActorCriticPolicy | HubExtractor)), None)
    if hears is None:
        raise BadConfig(f"The {type(model).__name__} given learns through no hub; make one with Hub.agent or Hub.policy_kwargs.")
    policy.set_training_mode(False)
    tensor, batched = policy.obs_to_tensor(observation)
    preprocessed: Any = preprocess_obs(tensor, policy.observation_space, normalize_images=policy.normalize_images)
    method = parts_in(hears, Method)[0]  # type: ignore[type-abstract]
    routed = hears.route(preprocessed).weights
    if routed is None:
        raise BadConfig(f"Method {hears.spec.method!r} has no pathway weights.")
    weights = routed.cpu().numpy()
    if batched:
        return {name: weights[:, index] for index, name in enumerate(method.pathways.names)}
    return {name: float(weights[0, index]) for index, name in enumerate(method.pathways.names)}
