"""The features extractor: any torch algorithm of SB3 learns from a hub through it."""

from typing import Any, TypeVar

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn

from hubrl.losses import inject
from hubrl.methods import create
from hubrl.methods.base import Routed
from hubrl.networks import Observations, register_hub_extractor
from hubrl.pathways import Pathways, Target, spec_sources
from hubrl.spec import HubSpec, parse_spec


class HubExtractor(BaseFeaturesExtractor):
    """Sources, router, top-k, aggregation: the sources' features for one SB3 network.

    Flat observations of the target are passed on beside the aggregated features, so that nothing the sources
    overlook is lost, unless the method says otherwise. The router is without noise here, because an extractor cannot
    tell a rollout from an evaluation.

    Args:
        observation_space: The target's observations, images channel first.
        hub: What `Hub.policy_kwargs` makes: the sources' cards, the method and its options, as plain data.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations.
        BadConfig: If the hub is not one, or an option cannot be.
    """

    def __init__(self, observation_space: spaces.Space[Any], hub: HubSpec | dict[str, Any]) -> None:
        spec = parse_spec(hub)
        method = create(spec.method, spec_sources(spec), Target(observation_space), spec.options)
        flat = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
        beside = get_flattened_obs_dim(observation_space) if flat and method.passes_observations else 0
        super().__init__(observation_space, method.features_dim + beside)
        self.spec = spec
        self.method = method
        self.beside = bool(beside)

    def route(self, observations: Observations) -> Routed:
        """What the hub makes of observations as SB3 preprocesses them."""
        routed: Routed = self.method(observations)
        return routed

    def forward(self, observations: Observations) -> Float[Tensor, "batch features"]:
        """Aggregated features; in a gradient step the method's loss rides on them."""
        routed = self.route(observations)
        features = routed.features
        learning = self.training and torch.is_grad_enabled()
        if learning and routed.loss.requires_grad:
            features = inject(features, routed.loss)
        self.method.tally.count(routed.weights, routed.loss if learning else None)
        return torch.cat([features, observations], dim=1) if self.beside and isinstance(observations, Tensor) else features


register_hub_extractor(HubExtractor)


Part = TypeVar("Part", bound=nn.Module)


def parts_in(module: nn.Module, kind: type[Part]) -> list[Part]:
    """The parts of a kind inside a module, each once, in order; not what is inside them.

    Of the methods or pathways of a policy these are its own, not those that its sources were themselves trained with.
    """
    if isinstance(module, kind):
        return [module]
    return list(dict.fromkeys(found for part in module.children() for found in parts_in(part, kind)))


def see_through_normalisation(module: nn.Module, env: VecEnv) -> None:
    """If the target's observations are normalised, let the sources see them as they were before.

    Uses the statistics of this moment: call it where they may change, but not between a rollout and its update.
    """
    vec = unwrap_vec_normalize(env)
    if vec is None or not vec.norm_obs:
        return
    means = vec.obs_rms if isinstance(vec.obs_rms, dict) else {"": vec.obs_rms}
    for pathways in parts_in(module, Pathways):
        pathways.see_through({key: (rms.mean, rms.var) for key, rms in means.items()}, vec.epsilon)
