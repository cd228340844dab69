"""NatureCNN in bfloat16: a rollout and its update in one precision, everything behind the features in float32."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from jaxtyping import BFloat16, Float, Shaped
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.freezing import ParametersOnce
from hubrl.spaces import describe

Precision = Literal["float32", "bfloat16"]

SAMPLE = 64
"""How many numbers of each trained weight are looked at to know whether it has changed."""

BLOCK = 4
"""Pixels a side that become channels: the stride of the first convolution."""


class BF16NatureCNN(NatureCNN):
    """SB3's NatureCNN, computed in bfloat16: the same weights under the same names, and features of float32.

    Weights stay float32, and so do their gradients and what an optimizer keeps.

    Args:
        observation_space: Images, channel first.
        features_dim: Width of the features.
        normalized_image: What SB3 sets where `normalize_images=False`: images are read as they are.
    """

    reads_bytes = True
    """Whether images may be given as the bytes they are, for the same features."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 512, normalized_image: bool = False) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        self.scale = 1 if normalized_image else 255
        self._kept = Kept()

    def forward(self, observations: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features of images as SB3 preprocesses them; pixels that are still bytes give the same, sooner."""
        weights = weights_in(self)
        return nature(pixels(observations, self.scale), self._kept.of(weights, lambda: cast_convolutions(weights, self.scale)))


class Kept:
    """Copies of weights in bfloat16, kept while nothing is learned from and the weights stay what they are."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()
        self._copies: list[Tensor] = []

    def of(self, weights: Sequence[Tensor], make: Callable[[], list[Tensor]], *, frozen: bool = False) -> list[Tensor]:
        """The copies that `make` makes of weights, anew where they carry a gradient or have changed.

        Args:
            weights: Of which copies are wanted.
            make: Makes them.
            frozen: Whether all weights are of frozen sources, which are loaded, and never written to otherwise.
        """
        if not frozen and torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return make()
        # All that is frozen is loaded, or moved, at once.
        watched = (weights[0], weights[-1]) if frozen else weights
        state = tuple([(weight.data_ptr(), weight._version) for weight in watched]), b"" if frozen else _sample(weights)
        if state != self._state:
            with torch.no_grad():
                self._state, self._copies = state, make()
        return self._copies


def _sample(weights: Sequence[Tensor]) -> bytes:
    # No version counts what SB3's Polyak average (`.data`) or a fused optimizer writes: a sample shows it. What is frozen is no Parameter.
    learned = [weight.detach().flatten()[:: max(weight.numel() // SAMPLE, 1)] for weight in weights if isinstance(weight, nn.Parameter)]
    return torch.cat(learned).cpu().numpy().tobytes() if learned else b""


def weights_in(module: nn.Module) -> list[Tensor]:
    """Kernels and biases of the layers in a module, in order, whether they are learned or frozen."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]


def cast_convolutions(weights: Sequence[Tensor], scale: int) -> list[Tensor]:
    """Weights in bfloat16, the first kernels over blocks and divided by the scale of pixels."""
    first, *others = weights
    folded = block_kernels(first / scale).bfloat16().contiguous(memory_format=torch.channels_last)
    return [folded, *(weight.bfloat16() for weight in others)]


def nature(images: Shaped[Tensor, "batch channels height width"], weights: Sequence[Tensor]) -> Float[Tensor, "batch features"]:
    """NatureCNN in bfloat16.

    Blocks of 4 x 4 pixels become channels, so that the first convolution is one of 2 x 2 over 16 times as many channels:
    the same sums, which a processor's matrix units reach. Pixels are whole numbers below 256, which bfloat16 holds
    exactly; that they are divided by 255 is left to the weights.

    Args:
        images: What `pixels` makes.
        weights: What `cast_convolutions` makes.
    """
    first, first_bias, second, second_bias, third, third_bias, last, last_bias = weights
    hidden = functional.conv2d(blocks(images), first, first_bias).relu()
    hidden = functional.conv2d(hidden, second, second_bias, stride=2).relu()
    hidden = functional.conv2d(hidden, third, third_bias).relu()
    return functional.linear(hidden.flatten(1), last, last_bias).relu().float()


class BF16Convolutions(nn.Sequential):
    """The router's two convolutions in bfloat16: 8 x 8 with a stride of 4, and 4 x 4 that do not overlap."""

    def forward(self, observations: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Flat features of float32."""
        first, first_bias, second, second_bias = cast_convolutions(weights_in(self), 255)
        hidden = functional.conv2d(blocks(pixels(observations, 255)), first, first_bias).relu()
        return functional.conv2d(hidden, second, second_bias, stride=second.shape[2:]).relu().flatten(1).float()


def pixels(observations: Shaped[Tensor, "batch channels height width"], scale: int) -> Shaped[Tensor, "batch channels height width"]:
    """Bytes as they are, and what SB3 divided by `scale` multiplied again, in bfloat16."""
    if observations.dtype == torch.uint8:
        return observations
    return (observations * scale).bfloat16() if scale != 1 else observations.bfloat16()


def blocks(images: Shaped[Tensor, "batch channels height width"]) -> BFloat16[Tensor, "batch folded rows columns"]:
    """Images whose blocks of 4 x 4 pixels became channels, in bfloat16 and channels last; what is over at the rim is cut.

    Args:
        images: Bytes, or bfloat16.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    cut = images[:, :, : rows * BLOCK, : columns * BLOCK].contiguous()
    if cut.requires_grad:
        parted = cut.view(batch, channels, rows, BLOCK, columns, BLOCK).permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, -1)
    else:
        # Four neighbours are moved as one number, which is four times faster.
        packed = torch.int32 if cut.dtype == torch.uint8 else torch.int64
        whole = cut.view(packed).view(batch, channels, rows, BLOCK, columns).permute(0, 2, 4, 1, 3)
        parted = whole.contiguous().view(batch, rows, columns, -1).view(cut.dtype)
    return parted.bfloat16().permute(0, 3, 1, 2)


def block_kernels(kernels: Float[Tensor, "out channels 8 8"]) -> Float[Tensor, "out folded 2 2"]:
    """Kernels of the first convolution as those over blocks: the same numbers in another order."""
    parted = kernels.view(*kernels.shape[:2], 2, BLOCK, 2, BLOCK)
    return parted.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


class ReadsBytes(BaseModel):
    """A network that hands images to an extractor that takes them as the bytes they are, where SB3 would divide them by 255 first.

    The features are the same; what is saved are three passes over a minibatch of floats, about a third of an update.
    """

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Any:
        """SB3's features."""
        if self.normalize_images and getattr(features_extractor, "reads_bytes", False):
            return features_extractor(obs)
        return super().extract_features(obs, features_extractor)


class ByteActorCriticPolicy(ParametersOnce, ActorCriticPolicy, ReadsBytes):
    """SB3's policy of PPO and A2C, reading bytes."""

    plain_module: ClassVar[str] = ActorCriticPolicy.__module__


class BF16CnnPolicy(ActorCriticCnnPolicy, ReadsBytes):
    """`CnnPolicy` of PPO, A2C and TRPO with its NatureCNN in bfloat16, and a fused optimizer unless one is given.

    Raises:
        BadConfig: If the target does not observe images.
    """

    plain_module: ClassVar[str] = ActorCriticPolicy.__module__
    """The module of SB3's policy that this is, by which its zip is read without unpickling."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Schedule, **kwargs: Any) -> None:
        # SB3 gives Adam this epsilon, but only where no keyword argument of the optimizer is given.
        super().__init__(observation_space, action_space, lr_schedule, **_completed(observation_space, kwargs, eps=1e-5))


class ByteQNetwork(QNetwork, ReadsBytes):
    """DQN's network, reading bytes."""


class ByteDQNPolicy(ParametersOnce, DQNPolicy):
    """SB3's policy of DQN, reading bytes."""

    plain_module: ClassVar[str] = DQNPolicy.__module__

    def make_q_net(self) -> QNetwork:
        """SB3's, reading bytes."""
        return ByteQNetwork(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)


class BF16DQNPolicy(ByteDQNPolicy, CnnPolicy):
    """`CnnPolicy` of DQN with its NatureCNN in bfloat16, and a fused optimizer unless one is given.

    Raises:
        BadConfig: If the target does not observe images.
    """

    plain_module: ClassVar[str] = DQNPolicy.__module__
    """The module of SB3's policy that this is, by which its zip is read without unpickling."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Discrete, lr_schedule: Schedule, **kwargs: Any) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **_completed(observation_space, kwargs))


def byte_policy(algorithm: type[BaseAlgorithm]) -> type[BasePolicy] | None:
    """The policy with which an algorithm's extractor gets images as bytes; none where there is no such policy."""
    return serving(algorithm, (ByteActorCriticPolicy, ByteDQNPolicy))


def serving(algorithm: type[BaseAlgorithm], kinds: Sequence[type[BasePolicy]]) -> type[BasePolicy] | None:
    """The first of some policies that is made of the algorithm's own."""
    own = algorithm.policy_aliases.get("MlpPolicy")
    return next((kind for kind in kinds if own is not None and issubclass(kind, own)), None)


def precise(algorithm: type[BaseAlgorithm], precision: Precision, space: spaces.Space[Any]) -> dict[str, Any]:
    """What an SB3 algorithm takes so that its own NatureCNN has a precision: nothing, a `policy`, or `policy_kwargs`.

    Args:
        algorithm: The class that takes it.
        precision: `float32` changes nothing.
        space: The target's observations.

    Raises:
        BadConfig: If the target does not observe images.
    """
    if precision == "float32":
        return {}
    kinds: tuple[type[BasePolicy], ...] = (BF16CnnPolicy, BF16DQNPolicy)
    kind = next((kind for kind in kinds if algorithm.policy_aliases.get("CnnPolicy") in kind.__bases__), None)
    kwargs = _in_bfloat16(space)
    return {"policy_kwargs": kwargs} if kind is None else {"policy": kind}


def _in_bfloat16(space: spaces.Space[Any]) -> dict[str, Any]:
    """A policy's keyword arguments that put the extractor in."""
    if not (isinstance(space, spaces.Box) and len(space.shape) == 3):
        raise BadConfig(f"bfloat16 was asked for where the target observes {describe(space)}; it is for images, leave it out.")
    # SB3 puts no hidden layers behind NatureCNN itself, and two behind every other extractor.
    return {"features_extractor_class": BF16NatureCNN, "net_arch": []}


def _completed(space: spaces.Space[Any], kwargs: dict[str, Any], **optimizer: Any) -> dict[str, Any]:
    """A policy's keyword arguments, with what was left open."""
    own = {**_in_bfloat16(space), **kwargs}
    if "optimizer_class" not in kwargs:
        own.setdefault("optimizer_kwargs", {"fused": True, **optimizer})
    return own
