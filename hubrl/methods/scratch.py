"""The control without sources."""

import itertools
from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from hubrl.errors import BadConfig
from hubrl.methods.registry import register
from hubrl.methods.single import OnePathway
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.source import Source


@register("scratch")
class Scratch(OnePathway):
    """The fresh pathway alone, as if there were no hub.

    Args:
        sources: Not used, but for their size.
        target: The target's spaces and level.
        width: Width of the features; by default 64.
        hub_sized: Whether it has about as many parameters as the sources' encoders together, so
            that the gain of a hub is not that of more parameters; at the level of features, where
            hidden layers or convolutions are made wider.
    """

    summary = "no source, a new network: a control"
    passes_observations = False

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        width: int | None = None,
        hub_sized: bool = False,
    ) -> None:
        if hub_sized and target.level == "outputs":
            raise BadConfig(
                "hub_sized=True was given at the level of outputs, where SB3 builds the network; "
                "use level='features'."
            )
        super().__init__(Pathways([], target, fresh=True, width=width))
        if hub_sized:
            encoders = [source.encoder.state_dict().values() for source in sources]
            size = sum(tensor.numel() for tensors in encoders for tensor in tensors)
            space = target.observation_space
            self.pathways.fresh = sized_pathway(space, self.pathways.width, size)


def sized_pathway(space: spaces.Space[Any], width: int, size: int) -> FreshPathway:
    """The narrowest fresh pathway with at least `size` parameters."""
    for scale in itertools.count(1):
        made = FreshPathway(space, width, scale)
        if sum(parameter.numel() for parameter in made.parameters()) >= size:
            break
    return made
