"""SB3's policies with NatureCNN in bfloat16, and policies that pass images on as bytes."""

from collections.abc import Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BaseModel,
    BasePolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, QNetwork

from hubrl.errors import BadConfig
from hubrl.formats.hub_spec import Precision
from hubrl.formats.spaces import describe
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.freezing import CachedParameters


class ReadsBytes(BaseModel):
    """Network that passes images on as bytes to an extractor that takes them.

    SB3 would divide them by 255 first. The features are the same; three passes over a minibatch of
    floats are saved, about a third of an update.
    """

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Any:
        """SB3's features."""
        if self.normalize_images and getattr(features_extractor, "reads_bytes", False):
            return features_extractor(obs)
        return super().extract_features(obs, features_extractor)


class ByteActorCriticPolicy(CachedParameters, ActorCriticPolicy, ReadsBytes):
    """SB3's policy of PPO and A2C, with images as bytes."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module: ClassVar[str] = ActorCriticPolicy.__module__


class BF16Policy(BasePolicy):
    """Mixin of policies with their NatureCNN in bfloat16.

    The optimizer is a fused one unless another is given.

    Raises:
        BadConfig: If the target does not observe images.
    """

    optimizer_options: ClassVar[dict[str, Any]] = {}
    """Keyword arguments of the fused optimizer."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> None:
        own = {**_in_bfloat16(observation_space), **kwargs}
        if "optimizer_class" not in kwargs:
            own.setdefault("optimizer_kwargs", {"fused": True, **self.optimizer_options})
        super().__init__(observation_space, action_space, lr_schedule, **own)


class BF16CnnPolicy(BF16Policy, ActorCriticCnnPolicy, ReadsBytes):
    """`CnnPolicy` of PPO, A2C and TRPO with its NatureCNN in bfloat16."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module: ClassVar[str] = ActorCriticPolicy.__module__
    """Module of the equivalent SB3 policy, as which its zip is read without unpickling."""

    # SB3 gives Adam this epsilon, but only where no keyword argument of the optimizer is given.
    optimizer_options: ClassVar[dict[str, Any]] = {"eps": 1e-5}


class ByteQNetwork(QNetwork, ReadsBytes):
    """DQN's Q-network, with images as bytes."""


class ByteDQNPolicy(CachedParameters, DQNPolicy):
    """SB3's policy of DQN, with images as bytes."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module: ClassVar[str] = DQNPolicy.__module__

    def make_q_net(self) -> QNetwork:
        """SB3's Q-network, with images as bytes."""
        return ByteQNetwork(
            **self._update_features_extractor(self.net_args, features_extractor=None)
        ).to(self.device)


class BF16DQNPolicy(BF16Policy, ByteDQNPolicy, CnnPolicy):
    """`CnnPolicy` of DQN with its NatureCNN in bfloat16."""

    __module__ = "hubrl"  # saved files name the class by this

    plain_module: ClassVar[str] = DQNPolicy.__module__


def byte_policy(algorithm: type[BaseAlgorithm]) -> type[BasePolicy] | None:
    """Policy that passes an algorithm's extractor images as bytes; none where there is none."""
    return first_fitting(algorithm, (ByteActorCriticPolicy, ByteDQNPolicy))


def first_fitting(
    algorithm: type[BaseAlgorithm], kinds: Sequence[type[BasePolicy]]
) -> type[BasePolicy] | None:
    """First of some policies that derives from the algorithm's own."""
    own = algorithm.policy_aliases.get("MlpPolicy")
    return next((kind for kind in kinds if own is not None and issubclass(kind, own)), None)


def precise(
    algorithm: type[BaseAlgorithm], precision: Precision, space: spaces.Space[Any]
) -> dict[str, Any]:
    """Keyword arguments of an SB3 algorithm for a NatureCNN of some precision.

    None, a `policy`, or `policy_kwargs`.

    Args:
        algorithm: The algorithm's class.
        precision: `float32` changes nothing.
        space: The target's observations.

    Raises:
        BadConfig: If the target does not observe images.
    """
    if precision == "float32":
        return {}
    kinds: tuple[type[BasePolicy], ...] = (BF16CnnPolicy, BF16DQNPolicy)
    kind = next(
        (kind for kind in kinds if algorithm.policy_aliases.get("CnnPolicy") in kind.__bases__),
        None,
    )
    kwargs = _in_bfloat16(space)
    return {"policy_kwargs": kwargs} if kind is None else {"policy": kind}


def _in_bfloat16(space: spaces.Space[Any]) -> dict[str, Any]:
    """A policy's keyword arguments with the extractor in bfloat16."""
    if not (isinstance(space, spaces.Box) and len(space.shape) == 3):
        raise BadConfig(
            f"bfloat16 was asked for where the target observes {describe(space)}; "
            "it is for images, leave it out."
        )
    # SB3 puts no hidden layers behind NatureCNN itself, and two behind every other extractor.
    return {"features_extractor_class": BF16NatureCNN, "net_arch": []}
