"""Frozen sources' features, computed once a step and stored by SB3 as observations."""

from collections import OrderedDict
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose, preprocess_obs
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import get_device, is_vectorized_observation, obs_as_tensor
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper
from stable_baselines3.dqn.policies import DQNPolicy

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    OBSERVATION,
    CachedFeaturesSpace,
    find_cached_space,
    store_features,
)
from hubrl.formats.hub_spec import parse_spec
from hubrl.formats.spaces import describe
from hubrl.nn.devices import check_device
from hubrl.policies.bf16 import ByteActorCriticPolicy, ByteDQNPolicy, first_fitting
from hubrl.policies.extractor import HubExtractor, check_left_alone, parts_in
from hubrl.sources import shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.observation_batch import divides_images

Rows = np.ndarray | dict[str, np.ndarray]
"""A batch of observations as environments give them, images channel first."""


class CachedVecEnv(VecEnvWrapper):
    """Environments whose observations come with features of frozen sources, computed once a step.

    Where the method reads nothing else, the features are the whole observation: float16 numbers,
    all sources side by side. Otherwise they stand under the key `source_features` beside the
    observation, whose key is `observation` or, of a Dict, its own keys. VecNormalize goes around it
    and leaves the features as they are; every other wrapper goes inside.

    Args:
        env: The target's environments, whose observations the sources read as they are.
        made: Keyword arguments from `Hub.agent` or `Hub.policy_kwargs` with `cached=True`; they
            hold the hub and so the sources.
        device: Device of the sources, as SB3 names devices.

    Raises:
        BadConfig: If `made` is without `cached=True`, VecNormalize or another CachedVecEnv is
            inside, or the device is not there.
        SpaceMismatch: If a source does not fit, sources disagree on the scale of images, or a part
            of the observations is called `source_features`.
    """

    def __init__(self, env: GymEnv, made: object, device: str | torch.device = "auto") -> None:
        if not isinstance(made, dict):
            raise BadConfig(
                f"{made!r} was given to CachedVecEnv; expected what hub.agent or hub.policy_kwargs "
                "returns with cached=True."
            )
        venv = BaseAlgorithm._wrap_env(
            env
        )  # as SB3's algorithms do: a VecEnv, images channel first
        self.observed = venv.observation_space
        if unwrap_vec_normalize(venv) is not None or find_cached_space(self.observed) is not None:
            raise BadConfig(
                "CachedVecEnv was put around VecNormalize or another CachedVecEnv; "
                "put it around the environment itself."
            )
        extractor = _extractor_for(made, self.observed)
        check_device(device, "CachedVecEnv's device")
        self.device = get_device(device)
        self.sources = [
            shared.on_device(source, torch.empty(0, device=self.device))
            for source in extractor.sources
        ]
        self.normalize_images = divides_images(source.card for source in self.sources)
        cached_space = CachedFeaturesSpace(self.observed, self.sources)
        self.keeps_observations = extractor.reads_observations
        self._encoders = BatchedSources(self.sources, extractor.spec.precision)
        self._as_bytes = self._encoders.reads_bytes and is_image_space(self.observed)
        super().__init__(
            venv,
            spaces.Dict(OrderedDict(_parts(self.observed, cached_space)))
            if self.keeps_observations
            else cached_space,
        )

    def reset(self) -> VecEnvObs:
        """First observations, with their features."""
        rows = cast("Rows", self.venv.reset())
        return cast("VecEnvObs", self._join_features(rows, self.compute_features(rows)))

    def step_wait(self) -> VecEnvStepReturn:
        """SB3's step; last observations of episodes come with features too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        rows = cast("Rows", observations)
        ended = [
            infos[index]
            for index in dones.nonzero()[0]
            if infos[index].get("terminal_observation") is not None
        ]
        if not ended:
            return self._join_features(rows, self.compute_features(rows)), rewards, dones, infos
        last = _stack_rows([info["terminal_observation"] for info in ended])
        features = self.compute_features(_concatenate_rows(rows, last))
        now, then = features[: self.num_envs], features[self.num_envs :]
        for index, info in enumerate(ended):
            info["terminal_observation"] = self._join_features(
                info["terminal_observation"], then[index]
            )
        return self._join_features(rows, now), rewards, dones, infos

    def compute_features(self, rows: Rows) -> np.ndarray:
        """Features of all sources `(envs, features)`, as float16, for the environments' rows."""
        observations: Any = obs_as_tensor(rows, self.device)
        if not self._as_bytes:
            observations = preprocess_obs(observations, self.observed, self.normalize_images)
        with torch.no_grad():
            return store_features(self._encoders(observations))

    def _join_features(self, rows: Rows, features: np.ndarray) -> Any:
        return _parts(rows, features) if self.keeps_observations else features


def _extractor_for(made: dict[str, Any], observed: spaces.Space[Any]) -> HubExtractor:
    """Extractor of the agent without the wrapper, for its sources and what it reads."""
    kwargs = made.get("policy_kwargs", made).get("features_extractor_kwargs") or {}
    spec = parse_spec(kwargs.get("hub"))
    if not spec.cached:
        raise BadConfig(
            "CachedVecEnv was given an agent made without cached=True; "
            "give it to Hub.agent or Hub.policy_kwargs."
        )
    if isinstance(observed, spaces.Dict) and (
        CACHED_FEATURES in observed.spaces or set(observed.spaces) == {OBSERVATION}
    ):
        raise SpaceMismatch(
            f"The target observes {describe(observed)}; a part called {CACHED_FEATURES!r}, "
            f"or {OBSERVATION!r} alone, is ambiguous; give the part another name."
        )
    return HubExtractor(observed, spec.model_copy(update={"cached": False}))


def _parts(observation: Any, features: Any) -> dict[str, Any]:
    """Observation, or its space, beside its cached features."""
    if isinstance(observation, spaces.Dict):
        observation = observation.spaces
    return {
        **(observation if isinstance(observation, dict) else {OBSERVATION: observation}),
        CACHED_FEATURES: features,
    }


def _stack_rows(observations: list[Any]) -> Rows:
    if isinstance(observations[0], dict):
        return {
            key: np.stack([observation[key] for observation in observations])
            for key in observations[0]
        }
    return np.stack(observations)


def _concatenate_rows(rows: Rows, last: Rows) -> Rows:
    if isinstance(rows, dict):
        assert isinstance(last, dict)
        return {key: np.concatenate([part, last[key]]) for key, part in rows.items()}
    assert isinstance(last, np.ndarray)
    return np.concatenate([rows, last])


class CachesOwnFeatures(BasePolicy):
    """Mixin of policies trained under CachedVecEnv that computes missing features.

    So a policy takes observations of the wrapped environment too. Under a VecNormalize these are
    normalised, as for a policy trained without the wrapper, and `HubCallback` has set the
    statistics by which the sources undo that.
    """

    plain_module: ClassVar[str]
    """Module of the equivalent SB3 policy, as which its zip is read without unpickling."""

    @cached_property
    def cached_space(self) -> CachedFeaturesSpace:
        """Space of the features among its observations."""
        return cast("CachedFeaturesSpace", find_cached_space(self.observation_space))

    @cached_property
    def observed_space(self) -> spaces.Space[Any]:
        """Space of the target's observations themselves."""
        return self.cached_space.observed

    def obs_to_tensor(self, observation: Rows) -> tuple[PyTorchObs, bool]:
        """SB3's `obs_to_tensor`, for observations with or without features, one or a batch.

        Images may be channel last or first.

        Raises:
            BadConfig: If the features were normalised.
            ValueError: If the observation has another shape.
        """
        return super().obs_to_tensor(
            observation if self._has_features(observation) else self._add_features(observation)
        )

    def is_vectorized_observation(self, observation: Rows) -> bool:
        """Whether an observation is a batch."""
        return (
            super().is_vectorized_observation(observation)
            if self._has_features(observation)
            else self._rows(observation)[1]
        )

    def _has_features(self, observation: Rows) -> bool:
        if isinstance(observation, dict):
            features = observation.get(CACHED_FEATURES)
        else:
            shape = np.shape(observation)
            own = isinstance(observation, np.ndarray) and observation.dtype == np.float16
            features = (
                observation
                if shape[-1:] == self.cached_space.shape
                and (own or shape[-1:] != self.observed_space.shape)
                else None
            )
        if features is not None and features.dtype != np.float16:
            check_left_alone([CACHED_FEATURES])
        return features is not None

    def _add_features(self, observation: Rows) -> Rows:
        rows, batched = self._rows(observation)
        extractor = parts_in(self, HubExtractor)[0]
        observations: Any = preprocess_obs(
            obs_as_tensor(rows, self.device),
            self.observed_space,
            divides_images(source.card for source in extractor.sources),
        )
        with torch.no_grad():
            features = store_features(
                [extractor.method.pathways.concatenated_features(observations)]
            )
        made: Rows = (
            _parts(rows, features) if isinstance(self.observation_space, spaces.Dict) else features
        )
        if batched:
            return made
        return {key: part[0] for key, part in made.items()} if isinstance(made, dict) else made[0]

    def _rows(self, observation: Rows) -> tuple[Rows, bool]:
        """Observations as a batch, and whether they were given as one."""
        space = self.observed_space
        if isinstance(space, spaces.Dict):
            parts = {
                key: _rows(np.asarray(observation[key]), part) for key, part in space.spaces.items()
            }
            return {key: rows for key, (rows, _) in parts.items()}, all(
                batched for _, batched in parts.values()
            )
        return _rows(
            np.asarray(observation[OBSERVATION] if isinstance(observation, dict) else observation),
            space,
        )


def _rows(observation: np.ndarray, space: spaces.Space[Any]) -> tuple[np.ndarray, bool]:
    turned = maybe_transpose(observation, space)
    batched = is_vectorized_observation(turned, space)
    return turned.reshape(-1, *(space.shape or ())), bool(batched)


class CachedActorCriticPolicy(CachesOwnFeatures, ByteActorCriticPolicy):
    """SB3's policy of PPO, A2C and TRPO for cached features."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module = ActorCriticPolicy.__module__

    def extract_features(self, obs: PyTorchObs, features_extractor: Any = None) -> Any:
        """SB3's features.

        Raises:
            BadConfig: If the cached features were normalised.
        """
        if (obs[CACHED_FEATURES] if isinstance(obs, dict) else obs).dtype != torch.float16:
            check_left_alone([CACHED_FEATURES])
        return super().extract_features(obs, features_extractor)


class CachedDQNPolicy(CachesOwnFeatures, ByteDQNPolicy):
    """SB3's policy of DQN for cached features."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module = DQNPolicy.__module__


def cached_policy(algorithm: type[BaseAlgorithm]) -> type[BasePolicy] | str:
    """Policy that computes missing features, or SB3's name of one that needs them given."""
    recurrent = (
        "MlpPolicy" not in algorithm.policy_aliases
        or "MultiInputLstmPolicy" in algorithm.policy_aliases
    )
    named = "MultiInputLstmPolicy" if recurrent else "MultiInputPolicy"
    return first_fitting(algorithm, (CachedActorCriticPolicy, CachedDQNPolicy)) or named
