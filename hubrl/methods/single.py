"""The control: one source, and nobody else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.methods.base import Method, Routed, register
from hubrl.networks import Observations
from hubrl.pathways import Pathways, Target
from hubrl.source import Source


@register("single")
class Single(Method):
    """One source has all the say.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the one; needed where there are several.
        width: Width of the features; the source's if not given.
    """

    summary = "one source alone: a control"

    def __init__(self, sources: Sequence[Source], target: Target, *, source: str | None = None, width: int | None = None) -> None:
        by_name = {member.name: member for member in sources}
        if source is None and len(by_name) == 1:
            source = next(iter(by_name))
        if source is None:
            raise BadConfig(f"Method 'single' needs source=..., one of {', '.join(by_name)}.")
        if source not in by_name:
            raise UnknownName(unknown("source", source, by_name))
        super().__init__(Pathways([by_name[source]], target, fresh=False, width=width))

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise_key: int | None = None) -> Routed:
        """What the one source says."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        weights = torch.ones(len(rows), 1, device=rows.device)
        speech = self.pathways.speak(observations, weights > 0)
        return Routed(speech, weights, speech[:, 0], speech.new_zeros(()))
