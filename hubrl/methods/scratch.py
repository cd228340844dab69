"""The control: no source at all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.methods.base import Method, Routed, register
from hubrl.networks import Observations
from hubrl.pathways import Pathways, Target
from hubrl.source import Source


@register("scratch")
class Scratch(Method):
    """The fresh pathway alone, as if there were no hub.

    Args:
        sources: Left aside.
        target: What the fresh pathway has to fit.
        width: Width of the features; 64 if not given.
    """

    summary = "no source, a new network: a control"

    def __init__(self, sources: Sequence[Source], target: Target, *, width: int | None = None) -> None:
        super().__init__(Pathways([], target, fresh=True, width=width))

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise_key: int | None = None) -> Routed:
        """What the fresh pathway says."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        weights = torch.ones(len(rows), 1, device=rows.device)
        speech = self.pathways.speak(observations, weights > 0, fresh)
        return Routed(speech[:, 0], speech.new_zeros(()), speech, weights)
