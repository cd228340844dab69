"""The features extractor: any torch algorithm of SB3 learns from a hub through it."""

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecFrameStack,
    unwrap_vec_normalize,
    unwrap_vec_wrapper,
)
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    OBSERVATION,
    CachedFeaturesSpace,
    find_cached_space,
)
from hubrl.formats.hub_spec import HubSpec, parse_spec
from hubrl.formats.spaces import describe
from hubrl.methods import create
from hubrl.methods.base import Routed
from hubrl.methods.registry import check_cached
from hubrl.nn.losses import inject
from hubrl.routing.pathways import Pathways, spec_sources
from hubrl.routing.source_pathway import SourcePathway
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import register_hub_extractor


class HubExtractor(BaseFeaturesExtractor):
    """Sources, router, top-k, aggregation: the sources' features for one SB3 network.

    Flat observations of the target are passed on beside the aggregated features, so that nothing
    the sources overlook is lost, unless the method says otherwise. The router is without noise
    here, because an extractor cannot tell a rollout from an evaluation.

    Where observations come with what the sources' encoders said of them, no source is computed
    (`hubrl.CachedVecEnv`).

    Args:
        observation_space: The target's observations, images channel first.
        hub: What `Hub.policy_kwargs` makes: the sources' cards, the method and its options, as
            plain data.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations.
        BadConfig: If the hub is not one, an option cannot be, or the observations are not what
            `cached` says.
    """

    __module__ = "hubrl"  # saved files name the class by this

    def __init__(self, observation_space: spaces.Space[Any], hub: HubSpec | dict[str, Any]) -> None:
        spec = parse_spec(hub)
        heard = find_cached_space(observation_space)
        if spec.cached != (heard is not None):
            raise BadConfig(
                NOT_HEARD.format(describe(observation_space)) if spec.cached else NOT_CACHED
            )
        observed = observation_space if heard is None else _observed(observation_space, heard)
        method = create(
            spec.method,
            spec_sources(spec),
            TargetSpec(observed, precision=spec.precision),
            spec.options,
        )
        flat = isinstance(observed, spaces.Box) and len(observed.shape) == 1
        beside = get_flattened_obs_dim(observed) if flat and method.passes_observations else 0
        super().__init__(observation_space, method.features_dim + beside)
        self.spec = spec
        self.method = method
        self.beside = bool(beside)
        self.cached = heard is not None
        self.parts = isinstance(observed, spaces.Dict)
        if heard is not None:
            self._check_heard(observation_space, heard)

    @property
    def reads_observations(self) -> bool:
        """Whether it reads observations itself, beside what sources say of them."""
        return self.beside or self.method.reads_observations

    @property
    def reads_bytes(self) -> bool:
        """Whether images may be given as the bytes they are, for the same features."""
        heard_alone = self.cached and not isinstance(self._observation_space, spaces.Dict)
        return not heard_alone and not self.parts and self.method.reads_bytes

    @property
    def sources(self) -> list[Source]:
        """The sources that it hears, in order."""
        return [cast("SourcePathway", pathway).source for pathway in self.method.pathways.sources]

    def route(self, observations: Observations) -> Routed:
        """What the hub makes of observations as SB3 preprocesses them."""
        return self._routed(*self._apart(observations))

    def forward(self, observations: Observations) -> Float[Tensor, "batch features"]:
        """Aggregated features; in a gradient step the method's loss rides on them."""
        heard, observed = self._apart(observations)
        routed = self._routed(heard, observed)
        features = routed.features
        learning = self.training and torch.is_grad_enabled()
        if learning and routed.loss.requires_grad:
            features = inject(features, routed.loss)
        self.method.routing_stats.add(routed.log_weights, routed.loss if learning else None)
        return (
            torch.cat([features, observed], dim=1)
            if self.beside and isinstance(observed, Tensor)
            else features
        )

    def _routed(self, heard: Tensor | None, observed: Observations) -> Routed:
        routed: Routed = self.method(observed, source_outputs=heard)
        return routed

    def _apart(self, observations: Observations) -> tuple[Tensor | None, Observations]:
        """What was heard, if anything was, and the observations; in their place what was heard if they were not kept."""
        if not self.cached:
            return None, observations
        if isinstance(observations, Tensor):
            return observations.float(), observations
        kept = {key: part for key, part in observations.items() if key != CACHED_FEATURES}
        return observations[CACHED_FEATURES].float(), kept if self.parts else kept[OBSERVATION]

    def _check_heard(self, space: spaces.Space[Any], heard: CachedFeaturesSpace) -> None:
        check_cached(self.spec.method, tuned=self.spec.tuned)
        wanted = CachedFeaturesSpace(heard.observed, self.sources)
        if not wanted.same_sources(heard):
            names = [", ".join(said.names) for said in (heard, wanted)]
            raise BadConfig(
                f"The environment hears the sources {names[0]}, the agent {names[1]}; make both from the same hub and method."
            )
        if self.reads_observations and not isinstance(space, spaces.Dict):
            raise BadConfig(
                f"Method {self.spec.method!r} as it was given reads observations, and only what was heard was kept of them; "
                "make CachedVecEnv and the agent from the same options."
            )


NOT_HEARD = (
    "cached=True was given and the environment observes {}, with nothing that was heard; put CachedVecEnv around it, with no wrapper but "
    "VecNormalize around that."
)

NOT_CACHED = "The environment is under CachedVecEnv and the agent was made without cached=True; give it, or leave the wrapper out."


def _observed(space: spaces.Space[Any], heard: CachedFeaturesSpace) -> spaces.Space[Any]:
    """The space of the observations themselves, as they were kept or, if they were not, as they were."""
    if not isinstance(space, spaces.Dict):
        return heard.observed
    kept = OrderedDict((key, part) for key, part in space.spaces.items() if key != CACHED_FEATURES)
    return spaces.Dict(kept) if isinstance(heard.observed, spaces.Dict) else kept[OBSERVATION]


register_hub_extractor(HubExtractor)


Part = TypeVar("Part", bound=nn.Module)


def parts_in(module: nn.Module, kind: type[Part]) -> list[Part]:
    """The parts of a kind inside a module, each once, in order; not what is inside them.

    Of the methods or pathways of a policy these are its own, not those that its sources were
    themselves trained with.
    """
    if isinstance(module, kind):
        return [module]
    return list(
        dict.fromkeys(found for part in module.children() for found in parts_in(part, kind))
    )


def see_through_normalisation(module: nn.Module, env: VecEnv) -> None:
    """If the target's observations are normalised, let the sources see them as they were before.

    Uses the statistics of this moment: call it where they may change, but not between a rollout and
    its update.

    Raises:
        BadConfig: If what was heard is normalised too, or observations are changed after they were
            normalised, but for stacked ones.
    """
    vec = unwrap_vec_normalize(env)
    if vec is None or not vec.norm_obs:
        return
    means = vec.obs_rms if isinstance(vec.obs_rms, dict) else {"": vec.obs_rms}
    heard = find_cached_space(env.observation_space)
    if heard is not None:
        check_left_alone(means)
        means = {
            "" if key == OBSERVATION and not isinstance(heard.observed, spaces.Dict) else key: rms
            for key, rms in means.items()
        }
    stack = unwrap_vec_wrapper(env, VecFrameStack)
    frames = (
        stack.stacked_obs.n_stack
        if isinstance(stack, VecFrameStack) and vec.observation_space != env.observation_space
        else 1
    )
    statistics = {
        key: (_stacked(rms.mean, frames), _stacked(rms.var, frames)) for key, rms in means.items()
    }
    for pathways in parts_in(module, Pathways):
        pathways.set_statistics(statistics, vec.epsilon)


def _stacked(values: np.ndarray, frames: int) -> np.ndarray:
    """Statistics of flat observations of which so many are stacked after they were normalised, as the RL Zoo does."""
    return np.tile(values, frames) if values.ndim == 1 else values


def check_left_alone(normalised: Collection[str]) -> None:
    """Refuse a VecNormalize that normalises what was heard.

    Args:
        normalised: The keys of the observations that it normalises; an empty one for what is no
            Dict.

    Raises:
        BadConfig: Saying how to make it.
    """
    if {"", CACHED_FEATURES} & set(normalised):
        raise BadConfig(
            "VecNormalize normalises cached features; give it norm_obs_keys without 'source_features', "
            "or norm_obs=False if no observation is kept."
        )
