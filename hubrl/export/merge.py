"""One ordinary SB3 agent from an agent that learned through a hub, where one network is exact.

The agent's computation is read as chains of layers. Linear layers without an activation between
them are multiplied; the rest must have the shape of SB3's own policies. Any other agent is refused
with a reason, and can be distilled (`hubrl.export.distill`).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO
from torch import Tensor

from hubrl.export.chains import NotPlainError, read_chains
from hubrl.export.plain_model import build_plain_model
from hubrl.formats.hub_spec import Precision
from hubrl.formats.spaces import describe
from hubrl.policies.as_source import HubActor, HubGreedyActor
from hubrl.policies.extractor import HubExtractor
from hubrl.sources.heads import GreedyAction
from hubrl.sources.source import Source
from hubrl.sources.trunks import HubTrunk

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"PPO": PPO, "A2C": A2C, "DQN": DQN}

OBSERVATIONS = 1000
"""Random observations on which an exported agent is compared with the original."""

TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-3}
"""Greatest difference, by the original's precision; a greater one shows a part that is no layer."""


class Exported(NamedTuple):
    """An ordinary SB3 agent."""

    model: BaseAlgorithm
    difference: float
    """Greatest difference of means, logits or Q-values over random observations.

    It is relative to their size where that is above 1.
    """


def export(agent: Source) -> Exported:
    """One ordinary SB3 agent with the same outputs, for machines without hubrl.

    Its deterministic actions are the agent's. The statistics of a VecNormalize around the target
    stay outside, as in SB3. Training may go on from it, with a new optimizer.

    Args:
        agent: A trained agent, as `read_agent` or `read_live` gives it.

    Raises:
        NotPlainError: If no single network of SB3's shapes has these outputs, with the reason; a
            `BadConfig`.
    """
    try:
        return _export(agent)
    except NotPlainError as error:
        raise NotPlainError(
            f"The agent {agent.name!r} cannot be merged into one plain network: {error}. "
            "Distil it with `hubrl distill`, or write a graph of it with "
            "`hubrl export --format onnx`."
        ) from error


@torch.no_grad()
def _export(agent: Source) -> Exported:
    kind = ALGORITHMS.get(agent.card.algorithm)
    if kind is None or agent.actions is None:
        known = ", ".join(ALGORITHMS)
        raise NotPlainError(f"it was trained by {agent.card.algorithm}, and {known} are merged")
    model = build_plain_model(agent, kind, read_chains(agent))
    model.policy.set_training_mode(False)
    difference, tolerance = _difference(agent, model), TOLERANCE[_precision(agent)]
    if difference > tolerance:
        raise NotPlainError(
            f"the merged network differs from it by {difference:.1e}, more than {tolerance:.0e}"
        )
    return Exported(model, difference)


def _precision(agent: Source) -> Precision:
    """The precision in which an agent's networks were computed."""
    encoder = agent.encoder
    if isinstance(encoder, HubActor | HubGreedyActor):
        return encoder.policy.spec.precision
    trunks = getattr(encoder, "trunks", None)
    extractor = trunks.extractor if isinstance(trunks, HubTrunk) else None
    return extractor.spec.precision if isinstance(extractor, HubExtractor) else "float32"


def _difference(agent: Source, model: BaseAlgorithm) -> float:
    """Greatest relative difference of two agents' outputs over random observations."""
    worst = 0.0
    for rows in np.array_split(random_observations(agent.space), OBSERVATIONS // 100):
        observations = torch.as_tensor(rows)
        own, plain = _outputs(agent, observations), _plain_outputs(model, observations)
        worst = max(worst, float(((own - plain).abs() / own.abs().clamp_min(1)).max()))
    return worst


def random_observations(space: spaces.Space[Any], n: int = OBSERVATIONS) -> np.ndarray:
    """Random observations of a space of arrays, the same every time.

    Args:
        space: Of arrays: no Dict.
        n: Number of observations.
    """
    flat = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    assert isinstance(space, flat), describe(space)
    if isinstance(space, spaces.Box) and space.dtype != np.uint8:
        rows = np.random.default_rng(0).normal(size=(n, *space.shape))
        return rows.clip(space.low, space.high).astype(np.float32)
    space.seed(0)
    return np.stack([space.sample() for _ in range(n)])


def _outputs(agent: Source, observations: Tensor) -> Tensor:
    """Means, logits or Q-values of an agent, without the target's VecNormalize."""
    images = agent.card.normalize_images
    inputs: Any = preprocess_obs(observations, agent.space, normalize_images=images)
    if isinstance(agent.encoder, HubGreedyActor):
        return agent.encoder.policy.learnt(inputs)
    features = agent.encoder(inputs)
    if isinstance(agent.action, GreedyAction):
        return agent.action.q_values(features)
    assert agent.action is not None
    outputs: Tensor = agent.action(features)
    return outputs.chunk(2, dim=1)[0] if isinstance(agent.actions, spaces.Box) else outputs


def _plain_outputs(model: BaseAlgorithm, observations: Tensor) -> Tensor:
    """Means, logits or Q-values of an SB3 model; means are clipped to the action space."""
    if not isinstance(model, OnPolicyAlgorithm):
        values: Tensor = model.q_net(observations)  # type: ignore[attr-defined]
        return values
    distribution: Any = model.policy.get_distribution(observations).distribution
    space = model.action_space
    if isinstance(space, spaces.Box):
        mean: Tensor = distribution.mean
        return mean.clamp(torch.as_tensor(space.low), torch.as_tensor(space.high))
    logits: Tensor = distribution.logits
    return logits
