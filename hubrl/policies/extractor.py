"""Features extractor by which any torch algorithm of SB3 learns from a hub."""

import sys
import warnings
from collections import OrderedDict
from collections.abc import Collection
from types import FrameType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecFrameStack,
    unwrap_vec_normalize,
    unwrap_vec_wrapper,
)
from torch import Tensor, nn

from hubrl.errors import BadConfig, HubrlWarning
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    OBSERVATION,
    CachedFeaturesSpace,
    find_cached_space,
)
from hubrl.formats.hub_spec import HubSpec, parse_spec
from hubrl.formats.spaces import describe
from hubrl.methods import create, find
from hubrl.methods.base import Routed
from hubrl.methods.registry import check_cached
from hubrl.nn.losses import inject
from hubrl.policies.on_policy.raw_observations import RawExtractor
from hubrl.routing.pathways import Pathways, spec_sources
from hubrl.routing.source_pathway import SourcePathway
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import register_hub_extractor


class HubExtractor(BaseFeaturesExtractor):
    """Sources, router, top-k and aggregation as one SB3 features extractor.

    Flat observations of the target are passed on beside the aggregated features, so that nothing
    the sources overlook is lost, unless the method passes none. The router is without noise here,
    because rollouts and evaluations are the same to an extractor.

    Where observations come with cached features of the sources, no source is computed
    (`hubrl.CachedVecEnv`).

    Args:
        observation_space: The target's observations, images channel first.
        hub: Plain data from `Hub.policy_kwargs`: the sources' cards, the method and its options.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations.
        BadConfig: If the hub or an option is not valid, or `cached` does not fit the observations.
    """

    __module__ = "hubrl"  # saved files name the class by this

    def __init__(self, observation_space: spaces.Space[Any], hub: HubSpec | dict[str, Any]) -> None:
        spec = parse_spec(hub)
        cached_space = find_cached_space(observation_space)
        if spec.cached != (cached_space is not None):
            raise BadConfig(
                NO_CACHED_FEATURES.format(describe(observation_space))
                if spec.cached
                else NOT_CACHED
            )
        observed = (
            observation_space
            if cached_space is None
            else _observed(observation_space, cached_space)
        )
        as_scratch = find(spec.method).starts_as_scratch
        with torch.random.fork_rng(devices=[], enabled=as_scratch):
            target = TargetSpec(observed, precision=spec.precision)
            method = create(spec.method, spec_sources(spec), target, spec.options)
        # Only this draws from the generator, as SB3's own extractor would.
        method.draw_network()
        flat = isinstance(observed, spaces.Box) and len(observed.shape) == 1
        beside = get_flattened_obs_dim(observed) if flat and method.passes_observations else 0
        super().__init__(observation_space, method.features_dim + beside)
        self.spec = spec
        self.method = method
        self.beside = bool(beside)
        self.cached = cached_space is not None
        self._was_checked = False
        self.parts = isinstance(observed, spaces.Dict)
        if cached_space is not None:
            self._check_cached(observation_space, cached_space)

    @property
    def reads_observations(self) -> bool:
        """Whether observations are read beside the sources' features."""
        return self.beside or self.method.reads_observations

    @property
    def reads_bytes(self) -> bool:
        """Whether images may be given as bytes, for the same features."""
        only_features = self.cached and not isinstance(self._observation_space, spaces.Dict)
        return not only_features and not self.parts and self.method.reads_bytes

    @property
    def sources(self) -> list[Source]:
        """The hub's sources, in order."""
        return [cast("SourcePathway", pathway).source for pathway in self.method.pathways.sources]

    def route(self, observations: Observations) -> Routed:
        """Routing of observations as SB3 preprocesses them."""
        return self._routed(*self._split(observations))

    def forward(self, observations: Observations) -> Float[Tensor, "batch features"]:
        """Aggregated features; in a gradient step with the method's loss attached."""
        cached, observed = self._split(observations)
        routed = self._routed(cached, observed)
        features = routed.features
        learning = self.training and torch.is_grad_enabled()
        if learning and not self._was_checked:
            self._was_checked = True
            warn_without_callback(self)
        if learning and routed.loss.requires_grad:
            features = inject(features, routed.loss)
        self.method.routing_stats.add(routed.log_weights, routed.loss if learning else None)
        return (
            torch.cat([features, observed], dim=1)
            if self.beside and isinstance(observed, Tensor)
            else features
        )

    def _routed(self, cached: Tensor | None, observed: Observations) -> Routed:
        routed: Routed = self.method(observed, source_outputs=cached)
        return routed

    def _split(self, observations: Observations) -> tuple[Tensor | None, Observations]:
        """Cached features, if any, and the observations.

        The features stand for the observations too where those are not kept.
        """
        if not self.cached:
            return None, observations
        if isinstance(observations, Tensor):
            return observations.float(), observations
        kept = {key: part for key, part in observations.items() if key != CACHED_FEATURES}
        return observations[CACHED_FEATURES].float(), kept if self.parts else kept[OBSERVATION]

    def _check_cached(self, space: spaces.Space[Any], cached_space: CachedFeaturesSpace) -> None:
        check_cached(self.spec.method, tuned=self.spec.tuned)
        wanted = CachedFeaturesSpace(cached_space.observed, self.sources)
        if not wanted.same_sources(cached_space):
            names = [", ".join(each.names) for each in (cached_space, wanted)]
            raise BadConfig(
                f"The environment caches the sources {names[0]}, the agent reads {names[1]}; "
                "make both from the same hub and method."
            )
        if self.reads_observations and not isinstance(space, spaces.Dict):
            raise BadConfig(
                f"Method {self.spec.method!r} as it was given reads observations, "
                "and only cached features were kept of them; "
                "make CachedVecEnv and the agent from the same options."
            )


NO_CACHED_FEATURES = (
    "cached=True was given and the environment observes {}, without cached features; "
    "put CachedVecEnv around it, with no wrapper but VecNormalize around that."
)

NOT_CACHED = (
    "The environment is under CachedVecEnv and the agent was made without cached=True; "
    "give it, or leave the wrapper out."
)


def _observed(space: spaces.Space[Any], cached_space: CachedFeaturesSpace) -> spaces.Space[Any]:
    """Space of the observations themselves: the kept part, or the original space without one."""
    if not isinstance(space, spaces.Dict):
        return cached_space.observed
    kept = OrderedDict((key, part) for key, part in space.spaces.items() if key != CACHED_FEATURES)
    return (
        spaces.Dict(kept) if isinstance(cached_space.observed, spaces.Dict) else kept[OBSERVATION]
    )


register_hub_extractor(HubExtractor)


Part = TypeVar("Part", bound=nn.Module)


def parts_in(module: nn.Module, kind: type[Part]) -> list[Part]:
    """Outermost submodules of a kind, each once, in order.

    Methods or pathways found so in a policy are its own, not those that its sources were trained
    with.
    """
    if isinstance(module, kind):
        return [module]
    return list(
        dict.fromkeys(found for part in module.children() for found in parts_in(part, kind))
    )


def warn_without_callback(module: nn.Module, *, needs_callback: bool = False) -> None:
    """Warn, from within `learn`, of what goes wrong without HubCallback.

    Sources read what the target's VecNormalize made of observations, or nothing judges them.

    Args:
        module: The policy or the extractor.
        needs_callback: Whether sources are judged by HubCallback, and there is none.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "learn":
        frame = frame.f_back
    model = None if frame is None else frame.f_locals.get("self")
    if not isinstance(model, BaseAlgorithm):
        return
    vec = model.get_vec_normalize_env()
    seen = any(pathways.sees_through for pathways in parts_in(module, Pathways))
    if vec is not None and vec.norm_obs and not seen:
        warnings.warn(UNSEEN, HubrlWarning, stacklevel=2)
    elif needs_callback:
        warnings.warn(UNJUDGED.format(type(model).__name__), HubrlWarning, stacklevel=2)


UNSEEN = (
    "The environment is under VecNormalize and no HubCallback undoes it for the sources, which so "
    "compute wrong actions; pass callback=HubCallback() to learn."
)


UNJUDGED = (
    "{} learns from a hub without HubCallback: no source is probed or judged, schedules of methods "
    "stand still, and no pathway is logged; pass callback=HubCallback() to learn."
)


def see_through_normalisation(module: nn.Module, env: VecEnv) -> None:
    """Undo VecNormalize on the sources' inputs, by its current statistics.

    To be called wherever the statistics may have changed, but not between a rollout and its update.

    Raises:
        BadConfig: If cached features are normalised too, or observations are changed after
            VecNormalize other than by stacking.
    """
    vec = unwrap_vec_normalize(env)
    if vec is None or not vec.norm_obs:
        return
    means = vec.obs_rms if isinstance(vec.obs_rms, dict) else {"": vec.obs_rms}
    cached_space = find_cached_space(env.observation_space)
    if cached_space is not None:
        check_left_alone(means)
        means = {
            ""
            if key == OBSERVATION and not isinstance(cached_space.observed, spaces.Dict)
            else key: rms
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
    # Those inside of sources are none of its children, and theirs.
    for extractor in module.children():
        if isinstance(extractor, RawExtractor):
            extractor.denormalizer.set_statistics(statistics, vec.epsilon)


def _stacked(values: np.ndarray, frames: int) -> np.ndarray:
    """Statistics of flat observations that are stacked after VecNormalize, as the RL Zoo does."""
    return np.tile(values, frames) if values.ndim == 1 else values


def check_left_alone(normalised: Collection[str]) -> None:
    """Check that VecNormalize leaves cached features as they are.

    Args:
        normalised: Keys of the observations that it normalises; an empty key where they are no
            Dict.

    Raises:
        BadConfig: If it normalises cached features.
    """
    if {"", CACHED_FEATURES} & set(normalised):
        raise BadConfig(
            "VecNormalize normalises cached features; give it norm_obs_keys without "
            "'source_features', or norm_obs=False if no observation is kept."
        )
