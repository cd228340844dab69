"""The control: no source at all."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


def sized(space: spaces.Space[Any], width: int, wanted: int) -> FreshPathway:
    """The narrowest fresh pathway with at least so many parameters."""
    for scale in itertools.count(1):
        made = FreshPathway(space, width, scale)
        if sum(parameter.numel() for parameter in made.parameters()) >= wanted:
            break
    return made


@register("scratch")
class Scratch(Method):
    """The fresh pathway alone, as if there were no hub.

    Args:
        sources: Left aside, but for their size.
        target: What the fresh pathway has to fit.
        width: Width of the features; 64 if not given.
        hub_sized: Whether it has about as many parameters as the sources' encoders have together, so that what a hub gains is
            not what more parameters gain; at the level of features, where hidden layers or convolutions are made wider.
    """

    summary = "no source, a new network: a control"
    passes_observations = False

    def __init__(self, sources: Sequence[Source], target: Target, *, width: int | None = None, hub_sized: bool = False) -> None:
        if hub_sized and target.level == "outputs":
            raise BadConfig("hub_sized=True was given at the level of outputs, where SB3 builds the network; use level='features'.")
        super().__init__(Pathways([], target, fresh=True, width=width))
        if hub_sized:
            wanted = sum(tensor.numel() for source in sources for tensor in source.encoder.state_dict().values())
            self.pathways.fresh = sized(target.observation_space, self.pathways.width, wanted)

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """What the fresh pathway says."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        all_say = torch.zeros(len(rows), 1, device=rows.device)
        speech = self.pathways.speak(observations, all_say == 0, fresh)
        return Routed(speech[:, 0], speech.new_zeros(()), speech, all_say)
