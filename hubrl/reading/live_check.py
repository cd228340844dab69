"""Comparison of a source with a policy of SB3: the live one, or the same rebuilt from a zip.

A model's class and arguments do not show modules that were exchanged after it was made, such as
another activation or features extractor; its saved weights then have the same names and shapes.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from hubrl.errors import BadFile
from hubrl.formats.cards import Declared
from hubrl.sources import observation_batch
from hubrl.sources.heads import GreedyAction
from hubrl.sources.source import Source

ROWS = 32
"""Observations that are compared."""

TOLERANCE = 1e-3
"""Greatest difference, as a share of the outputs' size, that rounding explains."""


@torch.no_grad()
def check_live(model: BaseAlgorithm, source: Source) -> None:
    """Refuse a source whose outputs are not those of the live model.

    Models that are hubs themselves, or whose observations are wrapped, are not compared.

    Args:
        model: The model.
        source: The source read from it, before any VecNormalize.

    Raises:
        BadFile: If they differ.
    """
    network, space = source.card.network, model.observation_space
    plain = isinstance(network, Declared) and network.hub is None
    if not plain or space is None or not source.accepts(space) or source.actions is None:
        return
    if same_outputs(model.policy, source, ROWS) is not False:
        return
    raise BadFile(
        f"The model {source.name!r} computes other actions than SB3's network of its class and "
        "arguments with its weights; a module was exchanged. Make it with policy_kwargs, or give "
        "its modules to hubrl.Source."
    )


@torch.no_grad()
def same_outputs(policy: BasePolicy, source: Source, rows: int) -> bool | None:
    """Whether a policy and a source compute the same; None if they cannot be compared.

    Args:
        policy: A policy of SB3.
        source: The source, without a VecNormalize.
        rows: Number of random observations on which they are compared.
    """
    observations = _sample(policy.observation_space, rows)
    own = _source_outputs(source, observations, rows)
    live = _live_outputs(policy, observations, rows)
    if live is None or live.shape != own.shape:
        return None
    return np.allclose(own, live, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _sample(space: spaces.Space[Any], rows: int) -> Any:
    """Observations from a generator of their own, so that none of the model's is used."""
    if isinstance(space, spaces.Dict):
        return {key: _sample(part, rows) for key, part in space.spaces.items()}
    generator = np.random.default_rng(0)
    if isinstance(space, spaces.Box):
        low = np.maximum(space.low.astype(np.float64), -3)
        high = np.minimum(
            space.high.astype(np.float64), low + (255 if space.dtype == np.uint8 else 6)
        )
        return generator.uniform(low, high, (rows, *space.shape)).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return space.start + generator.integers(space.n, size=rows)
    if isinstance(space, spaces.MultiDiscrete):
        return generator.integers(space.nvec, size=(rows, *space.shape))
    return generator.integers(2, size=(rows, *(space.shape or ())), dtype=np.int8)


def _source_outputs(source: Source, observations: Any, rows: int) -> np.ndarray:
    """Q-values, log-probabilities or deterministic actions."""
    if isinstance(source.actions, spaces.Box):
        return source.predict(observations, deterministic=True)[0].reshape(rows, -1)
    batch, _ = observation_batch.to_batch(observations, source.card, source._device())
    if isinstance(source.action, GreedyAction):
        return _array(source.action.q_values(source.features(batch)))
    return _array(source.outputs(batch))


def _live_outputs(policy: Any, observations: Any, rows: int) -> np.ndarray | None:
    """The policy's outputs; None for one without such outputs."""
    was_training = policy.training
    try:
        if isinstance(policy.action_space, spaces.Box):
            actions: np.ndarray = policy.predict(observations, deterministic=True)[0]
            return actions.reshape(rows, -1)
        policy.set_training_mode(False)
        tensors, _ = policy.obs_to_tensor(observations)
        if hasattr(policy, "q_net"):
            return _array(policy.q_net(tensors))
        if hasattr(policy, "quantile_net"):
            return _array(policy.quantile_net(tensors).mean(dim=1))
        if not hasattr(policy, "get_distribution"):
            return None
        return _logits(policy.get_distribution(tensors))
    finally:
        policy.set_training_mode(was_training)


def _logits(distribution: Distribution) -> np.ndarray | None:
    own: Any = getattr(distribution, "distribution", None)
    parts = own if isinstance(own, list) else [own]
    if not all(hasattr(part, "logits") for part in parts):
        return None
    return _array(torch.cat([part.logits for part in parts], dim=1))


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
