"""NatureCNN in bfloat16: a rollout and its update in one precision, everything behind the features in float32."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from gymnasium import spaces
from jaxtyping import BFloat16, Float, Shaped
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn import functional

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

    __module__ = "hubrl"  # saved files name the class by this

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
