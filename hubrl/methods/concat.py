"""Concatenation: the features of all sources side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("concat")
class Concat(Method):
    """The features of all sources side by side, under a new head.

    Flat observations are passed on beside them. There are no pathway weights.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
    """

    summary = "the features of all sources side by side, under a new head"
    levels = ("features",)
    needs_only_features = True

    def __init__(self, sources: Sequence[Source], target: TargetSpec) -> None:
        if not sources:
            raise BadConfig("Method 'concat' needs a source; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=False, project=False))
        self.features_dim = sum(source.width for source in sources)

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """All features in one row."""
        features = torch.cat(self.pathways.projected(observations, source_outputs), dim=1)
        return Routed(features, features.new_zeros(()))
