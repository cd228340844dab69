"""Observation space of cached features, as SB3's buffers hold them.

The features of all frozen sources stand side by side in one float16 vector.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Float16
from torch import Tensor

from hubrl.formats.cards import SourceCard
from hubrl.formats.spaces import SpaceDict, space_from_dict, space_to_dict

OBSERVATION, CACHED_FEATURES = "observation", "source_features"
"""Keys of an observation and of its cached features; a Dict observation keeps its own keys."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
"""Greatest number of float16; greater features are clamped to it."""


@runtime_checkable
class FeatureSource(Protocol):
    """Attributes of a source on which its cached features depend."""

    @property
    def name(self) -> str:
        """Its name in the hub."""

    @property
    def width(self) -> int:
        """Number of its features."""

    @property
    def card(self) -> SourceCard:
        """Its card, with the digest of its weights."""


class CachedFeaturesSpace(spaces.Box):
    """Space of the frozen sources' features, `(features of all sources,)`.

    The space of the observation itself is the attribute `observed`.

    Args:
        observed: The space of the observation itself, images channel first.
        sources: The sources, in order.
    """

    __module__ = "hubrl"  # Saved agents name the class by it, so that its module may move.

    def __init__(self, observed: spaces.Space[Any], sources: Sequence[FeatureSource]) -> None:
        width = sum(source.width for source in sources)
        super().__init__(-FLOAT16_MAX, FLOAT16_MAX, (width,), np.float16)
        # Plain data: an agent's zip is read without unpickling its spaces.
        self.observed_dict = space_to_dict(observed)
        self.names = [source.name for source in sources]
        self.digests = [source.card.sha256 for source in sources]

    @property
    def observed(self) -> spaces.Space[Any]:
        """The space of the observation itself."""
        return space_from_dict(self.observed_dict)

    def __eq__(self, other: object) -> bool:
        """Equality of sources and of the observation's space."""
        return (
            isinstance(other, CachedFeaturesSpace)
            and self.same_sources(other)
            and self.observed_dict == other.observed_dict
        )

    def same_sources(self, other: "CachedFeaturesSpace") -> bool:
        """Whether both hold features of the same sources, by name and digest."""
        return (self.names, self.digests) == (other.names, other.digests)


def find_cached_space(space: spaces.Space[Any]) -> CachedFeaturesSpace | None:
    """The part of an observation space that holds cached features; None without one."""
    part = space.spaces.get(CACHED_FEATURES) if isinstance(space, spaces.Dict) else space
    return part if isinstance(part, CachedFeaturesSpace) else None


def observed_space_dict(printed: Any, space: SpaceDict) -> SpaceDict:
    """The observation's own space of an agent that was trained on cached features.

    Args:
        printed: Its observation space in its zip's JSON.
        space: The same space as plain data.
    """
    if space["type"] != "Dict":
        own: SpaceDict = printed["observed_dict"]
        return space_to_dict(space_from_dict(own))
    parts = {key: part for key, part in space["spaces"].items() if key != CACHED_FEATURES}
    return parts[OBSERVATION] if set(parts) == {OBSERVATION} else {"type": "Dict", "spaces": parts}


def vecnormalize_kwargs(space: spaces.Space[Any]) -> dict[str, Any]:
    """VecNormalize's arguments that leave cached features alone; empty if there are none."""
    if find_cached_space(space) is None:
        return {}
    if not isinstance(space, spaces.Dict):
        return {"norm_obs": False}
    return {"norm_obs_keys": [key for key in space.spaces if key != CACHED_FEATURES]}


@torch.no_grad()
def store_features(
    features: Sequence[Float[Tensor, "batch _"]],
) -> Float16[np.ndarray, "batch features"]:
    """Features of all sources side by side, in their stored precision."""
    side_by_side = torch.cat(list(features), dim=1).clamp(-FLOAT16_MAX, FLOAT16_MAX)
    stored: np.ndarray = side_by_side.half().cpu().numpy()
    return stored
