"""The fresh pathway: a new network beside the sources, at the level of features."""

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from torch import Tensor, nn

from hubrl.errors import SpaceMismatch
from hubrl.formats.cards import Conv, Layers, Trunk
from hubrl.formats.hub_spec import Precision
from hubrl.formats.spaces import describe
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.sources.preprocessing import Observations
from hubrl.sources.trunks import NATURE, Reader, mlp

SMALLEST_NATURE = 36
"""Pixels a side that the three convolutions of NatureCNN need."""


class FreshPathway(nn.Module):
    """A new network: NatureCNN for images, SB3's combined extractor for Dict, else an MLP.

    Args:
        space: The target's observations.
        width: Width of its features.
        scale: Factor on the width of its hidden layers: 64 units each, or NatureCNN's channels.
        precision: Precision of NatureCNN at scale 1.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        width: int,
        scale: int = 1,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        kind = extractor_class(space)
        if kind is NatureCNN and scale > 1:
            convs = tuple(
                Conv(channels=scale * channels, kernel=kernel, stride=stride)
                for channels, kernel, stride in NATURE
            )
            self.reader: nn.Module = Reader(space, Trunk(convs=convs, linear=512))
            inputs = 512
        elif kind is not FlattenExtractor:
            extractor = extractor_class(space, precision)(space)
            self.reader = extractor
            inputs = extractor.features_dim
        else:
            layers = Layers(widths=(64 * scale, 64 * scale))
            hidden = mlp(int(get_flattened_obs_dim(space)), layers)
            self.reader = nn.Sequential(nn.Flatten(), *hidden)
            inputs = layers.widths[-1]
        self.projection = nn.Linear(inputs, width)

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of the new network."""
        features: Tensor = self.projection(self.reader(observations))
        return features


def extractor_class(
    space: spaces.Space[Any], precision: Precision = "float32"
) -> type[BaseFeaturesExtractor]:
    """The features extractor of SB3's own policies for a space; small images are flattened.

    Raises:
        SpaceMismatch: If an image in a Dict is too small for SB3's extractor.
    """
    if isinstance(space, spaces.Dict):
        small = [key for key, part in space.spaces.items() if _image_side(part) < SMALLEST_NATURE]
        if small:
            raise SpaceMismatch(
                f"The target observes an image {small[0]!r} of {describe(space[small[0]])}, and "
                f"SB3's NatureCNN needs {SMALLEST_NATURE} pixels a side; resize it, or flatten it "
                "in a wrapper."
            )
        return CombinedExtractor
    if SMALLEST_NATURE <= _image_side(space) < np.inf:
        return BF16NatureCNN if precision == "bfloat16" else NatureCNN
    return FlattenExtractor


def _image_side(space: spaces.Space[Any]) -> float:
    """The shorter side of an image in pixels; infinite for what is none."""
    if not isinstance(space, spaces.Box) or not is_image_space(space):
        return np.inf
    return float(min(space.shape[1:]))
