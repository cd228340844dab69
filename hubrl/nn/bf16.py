"""NatureCNN in bfloat16, with features in float32."""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from gymnasium import spaces
from jaxtyping import BFloat16, Float, Shaped
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import HubrlWarning
from hubrl.nn.freezing import WeightCache

BLOCK = 4
"""Pixels a side that become channels: the stride of the first convolution."""


SLOW = (
    "bfloat16 was asked for on a processor without instructions for it (AVX-512 or AMX), where it "
    "is many times slower than float32; leave precision='bfloat16' out."
)


@cache
def warn_where_slow() -> None:
    """Warn, once in a process, where bfloat16 is computed by emulation."""
    is_native: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not is_native and not torch.cuda.is_available():
        warnings.warn(SLOW, HubrlWarning, stacklevel=3)


class BF16NatureCNN(NatureCNN):
    """SB3's NatureCNN computed in bfloat16, with the same float32 weights under the same names.

    Gradients and the optimizer's state stay float32 too.

    Args:
        observation_space: Images, channel first.
        features_dim: Width of the features.
        normalized_image: Whether images are not divided by 255; SB3 sets it together with
            `normalize_images=False`.
    """

    __module__ = "hubrl"  # saved files name the class by this

    reads_bytes = True
    """Whether uint8 images may be given undivided, for the same features."""

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 512,
        normalized_image: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        warn_where_slow()
        self.scale = 1 if normalized_image else 255
        self._cache = WeightCache()

    def forward(
        self, observations: Shaped[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features of images as SB3 preprocesses them, or of the same images in uint8."""
        weights = layer_weights(self)
        cast = self._cache.get(weights, lambda: cast_convolutions(weights, self.scale))
        return nature_cnn(to_pixels(observations, self.scale), cast)


def layer_weights(module: nn.Module) -> list[Tensor]:
    """Kernels and biases of the layers in a module, in order, trained or frozen."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [own for layer in layers for own in (layer.weight, layer.bias) if own is not None]


def cast_convolutions(weights: Sequence[Tensor], scale: int) -> list[Tensor]:
    """Weights in bfloat16, the first kernels over blocks and divided by the scale of the pixels."""
    first, *others = weights
    folded = fold_kernels(first / scale).bfloat16().contiguous(memory_format=torch.channels_last)
    return [folded, *(weight.bfloat16() for weight in others)]


def nature_cnn(
    images: Shaped[Tensor, "batch channels height width"], weights: Sequence[Tensor]
) -> Float[Tensor, "batch features"]:
    """NatureCNN in bfloat16.

    Blocks of 4 x 4 pixels become channels, so that the first convolution is one of 2 x 2 over 16
    times as many channels: the same sums, which a processor's matrix units reach. Pixels are whole
    numbers below 256, which bfloat16 holds exactly; the weights contain the division by 255.

    Args:
        images: The result of `to_pixels`.
        weights: The result of `cast_convolutions`; without the last layer's, features are the third
            convolution's.
    """
    first, first_bias, second, second_bias, third, third_bias, *last = weights
    hidden = functional.conv2d(fold_blocks(images), first, first_bias).relu()
    hidden = functional.conv2d(hidden, second, second_bias, stride=2).relu()
    hidden = functional.conv2d(hidden, third, third_bias).relu()
    if not last:
        return hidden.flatten(1).float()
    return functional.linear(hidden.flatten(1), *last).relu().float()


class BF16Convolutions(nn.Sequential):
    """The router's two convolutions in bfloat16: 8 x 8 of stride 4, then 4 x 4 of stride 4."""

    def forward(
        self, observations: Shaped[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Flat features in float32."""
        first, first_bias, second, second_bias = cast_convolutions(layer_weights(self), 255)
        blocks = fold_blocks(to_pixels(observations, 255))
        hidden = functional.conv2d(blocks, first, first_bias).relu()
        hidden = functional.conv2d(hidden, second, second_bias, stride=second.shape[2:]).relu()
        return hidden.flatten(1).float()


def to_pixels(
    observations: Shaped[Tensor, "batch channels height width"], scale: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Images in 0..255: uint8 unchanged, floats that SB3 divided by `scale` in bfloat16."""
    if observations.dtype == torch.uint8:
        return observations
    return (observations * scale).bfloat16() if scale != 1 else observations.bfloat16()


def fold_blocks(
    images: Shaped[Tensor, "batch channels height width"],
) -> BFloat16[Tensor, "batch folded rows columns"]:
    """Images with blocks of 4 x 4 pixels as channels, channels last; an incomplete rim is cut.

    Args:
        images: uint8 or bfloat16.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    cut = images[:, :, : rows * BLOCK, : columns * BLOCK].contiguous()
    if cut.requires_grad:
        parted = cut.view(batch, channels, rows, BLOCK, columns, BLOCK).permute(0, 2, 4, 1, 3, 5)
        parted = parted.reshape(batch, rows, columns, -1)
    else:
        # Four neighbours are moved as one number, which is four times faster.
        packed = torch.int32 if cut.dtype == torch.uint8 else torch.int64
        whole = cut.view(packed).view(batch, channels, rows, BLOCK, columns).permute(0, 2, 4, 1, 3)
        parted = whole.contiguous().view(batch, rows, columns, -1).view(cut.dtype)
    return parted.bfloat16().permute(0, 3, 1, 2)


def fold_kernels(kernels: Float[Tensor, "out channels 8 8"]) -> Float[Tensor, "out folded 2 2"]:
    """Kernels of the first convolution over blocks: the same numbers in another order."""
    parted = kernels.view(*kernels.shape[:2], 2, BLOCK, 2, BLOCK)
    return parted.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
