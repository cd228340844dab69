"""A features extractor over observations as they were before the target's VecNormalize."""

from typing import Any

from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from hubrl.routing.source_pathway import Denormalizer
from hubrl.sources.preprocessing import Observations


class RawExtractor(BaseFeaturesExtractor):
    """An extractor behind a `Denormalizer`, for a network that was trained on raw observations.

    Args:
        space: The target's observations.
        extractor: The extractor, of SB3's.
    """

    def __init__(self, space: spaces.Space[Any], extractor: BaseFeaturesExtractor) -> None:
        super().__init__(space, extractor.features_dim)
        self.denormalizer = Denormalizer(space)
        self.extractor = extractor

    def forward(self, observations: Observations) -> Float[Tensor, "batch features"]:
        """Features of the observations before VecNormalize."""
        features: Tensor = self.extractor(self.denormalizer(observations))
        return features
