"""The plainest hub: all features side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("concat")
class Concat(Method):
    """The features of all sources, one after the other, under a new head that weighs them as it likes.

    Flat observations are passed on beside them. There are no pathway weights.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
    """

    summary = "the features of all sources side by side, under a new head"
    levels = ("features",)
    takes_heard = True

    def __init__(self, sources: Sequence[Source], target: Target) -> None:
        if not sources:
            raise BadConfig("Method 'concat' needs a source; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=False, project=False))
        self.features_dim = sum(source.width for source in sources)

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """All of them speak."""
        features = torch.cat(self.pathways.voices(observations), dim=1)
        return Routed(features, features.new_zeros(()))
