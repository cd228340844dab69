"""What frozen sources make of observations, as SB3's buffers hold it: float16 numbers, all sources side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Float16
from torch import Tensor

from hubrl.sources.source import Source
from hubrl.spaces import PlainSpace, from_plain, to_plain

OBSERVATION, HEARD = "observation", "heard"
"""Keys under which an observation is kept beside what was heard of it; a Dict observation's parts keep their own."""

LARGEST = float(np.finfo(np.float16).max)
"""Greatest number that float16 holds; what is beyond it is heard as this."""


class Heard(spaces.Box):
    """The space of what frozen sources said of an observation.

    Args:
        observed: The space of the observation itself, images channel first.
        sources: Who is heard, in order.
    """

    def __init__(self, observed: spaces.Space[Any], sources: Sequence[Source]) -> None:
        super().__init__(-LARGEST, LARGEST, (sum(source.width for source in sources),), np.float16)
        # Plain data: an agent's zip is read without unpickling its spaces.
        self.plain_observed = to_plain(observed)
        self.names = [source.name for source in sources]
        self.digests = [source.card.sha256 for source in sources]

    @property
    def observed(self) -> spaces.Space[Any]:
        """The space of the observation itself."""
        return from_plain(self.plain_observed)

    def __eq__(self, other: object) -> bool:
        """Whether the same sources are heard of like observations."""
        return isinstance(other, Heard) and self.hears_as(other) and self.plain_observed == other.plain_observed

    def hears_as(self, other: "Heard") -> bool:
        """Whether the same sources are heard."""
        return (self.names, self.digests) == (other.names, other.digests)


def heard_in(space: spaces.Space[Any]) -> Heard | None:
    """The part of an observation space that sources were heard for, if there is one."""
    part = space.spaces.get(HEARD) if isinstance(space, spaces.Dict) else space
    return part if isinstance(part, Heard) else None


def plain_observed(printed: Any, space: PlainSpace) -> PlainSpace:
    """The space of the observation itself, of an agent that learned from what was heard.

    Args:
        printed: Its observation space in its zip's JSON.
        space: The same as plain data.
    """
    if space["type"] != "Dict":
        own: PlainSpace = printed["plain_observed"]
        return to_plain(from_plain(own))
    parts = {key: part for key, part in space["spaces"].items() if key != HEARD}
    return parts[OBSERVATION] if set(parts) == {OBSERVATION} else {"type": "Dict", "spaces": parts}


def leaving_heard(space: spaces.Space[Any]) -> dict[str, Any]:
    """Keyword arguments with which VecNormalize leaves what was heard as it is; none if nothing was."""
    if heard_in(space) is None:
        return {}
    return {"norm_obs_keys": [key for key in space.spaces if key != HEARD]} if isinstance(space, spaces.Dict) else {"norm_obs": False}


@torch.no_grad()
def stored(features: Sequence[Float[Tensor, "batch _"]]) -> Float16[np.ndarray, "batch said"]:
    """Features of all sources side by side, as they are stored."""
    said: np.ndarray = torch.cat(list(features), dim=1).clamp(-LARGEST, LARGEST).half().cpu().numpy()
    return said
