"""Frozen sources' features computed once for every environment step, and stored by SB3 in place of, or beside, what was observed."""

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
from hubrl.policies.bf16 import ByteActorCriticPolicy, ByteDQNPolicy, serving
from hubrl.policies.extractor import HubExtractor, check_left_alone, parts_in
from hubrl.sources import shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.observation_batch import divides_images

Rows = np.ndarray | dict[str, np.ndarray]
"""A batch of observations as environments give them, images channel first."""


class CachedVecEnv(VecEnvWrapper):
    """Environments whose observations come with what frozen sources' encoders say of them, computed once a step.

    Where the method reads nothing else, what was heard is all that is observed: float16 numbers,
    all sources side by side. Otherwise it stands under the key `source_features` beside the
    observation, whose key is `observation` or, of a Dict, its own keys. VecNormalize goes around it
    and leaves what was heard alone; every other wrapper goes inside.

    Args:
        env: The target's environments, whose observations the sources hear as they are.
        made: What `Hub.agent` or `Hub.policy_kwargs` makes with `cached=True`; its hub says who is
            heard.
        device: Where sources are computed, as SB3 names devices.

    Raises:
        BadConfig: If `made` is not of that kind, or VecNormalize or another CachedVecEnv is inside.
        SpaceMismatch: If a source does not fit, sources disagree on the scale of images, or a part
            of the observations is called `source_features`.
    """

    def __init__(
        self, env: GymEnv, made: dict[str, Any], device: str | torch.device = "auto"
    ) -> None:
        venv = BaseAlgorithm._wrap_env(
            env
        )  # as SB3's algorithms do: a VecEnv, images channel first
        self.observed = venv.observation_space
        if unwrap_vec_normalize(venv) is not None or find_cached_space(self.observed) is not None:
            raise BadConfig(
                "CachedVecEnv was put around VecNormalize or another CachedVecEnv; put it around the environment itself."
            )
        extractor = _extractor_for(made, self.observed)
        self.device = get_device(device)
        self.sources = [
            shared.on_device(source, torch.empty(0, device=self.device))
            for source in extractor.sources
        ]
        self.normalize_images = divides_images(source.card for source in self.sources)
        heard = CachedFeaturesSpace(self.observed, self.sources)
        self.keeps_observations = extractor.reads_observations
        self._encoders = BatchedSources(self.sources, extractor.spec.precision)
        self._as_bytes = self._encoders.reads_bytes and is_image_space(self.observed)
        super().__init__(
            venv,
            spaces.Dict(OrderedDict(_parts(self.observed, heard)))
            if self.keeps_observations
            else heard,
        )

    def reset(self) -> VecEnvObs:
        """The first observations, and what is heard of them."""
        rows = cast("Rows", self.venv.reset())
        return cast("VecEnvObs", self._with(rows, self._hear(rows)))

    def step_wait(self) -> VecEnvStepReturn:
        """A step; of what episodes ended with, something is heard too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        rows = cast("Rows", observations)
        ended = [
            infos[index]
            for index in dones.nonzero()[0]
            if infos[index].get("terminal_observation") is not None
        ]
        if not ended:
            return self._with(rows, self._hear(rows)), rewards, dones, infos
        last = _stacked([info["terminal_observation"] for info in ended])
        heard = self._hear(_joined(rows, last))
        now, then = heard[: self.num_envs], heard[self.num_envs :]
        for index, info in enumerate(ended):
            info["terminal_observation"] = self._with(info["terminal_observation"], then[index])
        return self._with(rows, now), rewards, dones, infos

    def _hear(self, rows: Rows) -> np.ndarray:
        seen: Any = obs_as_tensor(rows, self.device)
        if not self._as_bytes:
            seen = preprocess_obs(seen, self.observed, self.normalize_images)
        with torch.no_grad():
            return store_features(self._encoders(seen))

    def _with(self, rows: Rows, heard: np.ndarray) -> Any:
        return _parts(rows, heard) if self.keeps_observations else heard


def _extractor_for(made: dict[str, Any], observed: spaces.Space[Any]) -> HubExtractor:
    """The extractor that an agent would have without the wrapper: it knows who is heard, and whether observations are read."""
    kwargs = made.get("policy_kwargs", made).get("features_extractor_kwargs") or {}
    spec = parse_spec(kwargs.get("hub"))
    if not spec.cached:
        raise BadConfig(
            "CachedVecEnv was given an agent made without cached=True; give it to Hub.agent or Hub.policy_kwargs."
        )
    if isinstance(observed, spaces.Dict) and (
        CACHED_FEATURES in observed.spaces or set(observed.spaces) == {OBSERVATION}
    ):
        raise SpaceMismatch(
            f"The target observes {describe(observed)}; a part called {CACHED_FEATURES!r}, or {OBSERVATION!r} alone, cannot be told apart."
        )
    return HubExtractor(observed, spec.model_copy(update={"cached": False}))


def _parts(observation: Any, heard: Any) -> dict[str, Any]:
    """An observation, or its space, beside what was heard of it."""
    if isinstance(observation, spaces.Dict):
        observation = observation.spaces
    return {
        **(observation if isinstance(observation, dict) else {OBSERVATION: observation}),
        CACHED_FEATURES: heard,
    }


def _stacked(observations: list[Any]) -> Rows:
    if isinstance(observations[0], dict):
        return {
            key: np.stack([observation[key] for observation in observations])
            for key in observations[0]
        }
    return np.stack(observations)


def _joined(rows: Rows, last: Rows) -> Rows:
    if isinstance(rows, dict):
        assert isinstance(last, dict)
        return {key: np.concatenate([part, last[key]]) for key, part in rows.items()}
    assert isinstance(last, np.ndarray)
    return np.concatenate([rows, last])


class CachesOwnFeatures(BasePolicy):
    """What lets a policy that learned under CachedVecEnv take observations as the environment inside gives them: it hears for itself.

    Under a VecNormalize these are normalised observations, as for a policy that learned without the
    wrapper, and `HubCallback` has seen to it that the sources see through the normalisation.
    """

    plain_module: ClassVar[str]
    """The module of SB3's policy that this is, by which its zip is read without unpickling."""

    @cached_property
    def heard_space(self) -> CachedFeaturesSpace:
        """The part of its observations that is heard."""
        return cast("CachedFeaturesSpace", find_cached_space(self.observation_space))

    @cached_property
    def observed_space(self) -> spaces.Space[Any]:
        """The target's observations themselves."""
        return self.heard_space.observed

    def obs_to_tensor(self, observation: Rows) -> tuple[PyTorchObs, bool]:
        """SB3's, for one observation or a batch, heard already or not; images channel last or first.

        Raises:
            BadConfig: If what was heard was normalised.
            ValueError: If the observation has another shape.
        """
        return super().obs_to_tensor(
            observation if self._was_heard(observation) else self._heard(observation)
        )

    def is_vectorized_observation(self, observation: Rows) -> bool:
        """Whether it is a batch."""
        return (
            super().is_vectorized_observation(observation)
            if self._was_heard(observation)
            else self._rows(observation)[1]
        )

    def _was_heard(self, observation: Rows) -> bool:
        if isinstance(observation, dict):
            given = observation.get(CACHED_FEATURES)
        else:
            shape = np.shape(observation)
            own = isinstance(observation, np.ndarray) and observation.dtype == np.float16
            given = (
                observation
                if shape[-1:] == self.heard_space.shape
                and (own or shape[-1:] != self.observed_space.shape)
                else None
            )
        if given is not None and given.dtype != np.float16:
            check_left_alone([CACHED_FEATURES])
        return given is not None

    def _heard(self, observation: Rows) -> Rows:
        rows, batched = self._rows(observation)
        extractor = parts_in(self, HubExtractor)[0]
        seen: Any = preprocess_obs(
            obs_as_tensor(rows, self.device),
            self.observed_space,
            divides_images(source.card for source in extractor.sources),
        )
        with torch.no_grad():
            heard = store_features([extractor.method.pathways.concatenated_features(seen)])
        made: Rows = (
            _parts(rows, heard) if isinstance(self.observation_space, spaces.Dict) else heard
        )
        if batched:
            return made
        return {key: part[0] for key, part in made.items()} if isinstance(made, dict) else made[0]

    def _rows(self, observation: Rows) -> tuple[Rows, bool]:
        """A batch of observations, and whether it was one already."""
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
    """SB3's policy of PPO, A2C and TRPO."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module = ActorCriticPolicy.__module__

    def extract_features(self, obs: PyTorchObs, features_extractor: Any = None) -> Any:
        """SB3's.

        Raises:
            BadConfig: If what was heard was normalised.
        """
        if (obs[CACHED_FEATURES] if isinstance(obs, dict) else obs).dtype != torch.float16:
            check_left_alone([CACHED_FEATURES])
        return super().extract_features(obs, features_extractor)


class CachedDQNPolicy(CachesOwnFeatures, ByteDQNPolicy):
    """SB3's policy of DQN."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module = DQNPolicy.__module__


def cached_policy(algorithm: type[BaseAlgorithm]) -> type[BasePolicy] | str:
    """The policy with which an algorithm hears for itself, or SB3's name of one that takes what was heard alone."""
    recurrent = (
        "MlpPolicy" not in algorithm.policy_aliases
        or "MultiInputLstmPolicy" in algorithm.policy_aliases
    )
    named = "MultiInputLstmPolicy" if recurrent else "MultiInputPolicy"
    return serving(algorithm, (CachedActorCriticPolicy, CachedDQNPolicy)) or named
