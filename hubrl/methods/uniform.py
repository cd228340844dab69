"""The control of equal weights."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.methods.base import Routed, RoutedMethod
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.routing.weights import PathwayWeights, device_of, n_rows
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("uniform")
class Uniform(RoutedMethod):
    """Equal weights for all sources: the mean of their features or outputs.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        fresh: Whether a fresh pathway is one of them.
        width: Width of the features; by default the widest source's, at most 128.
    """

    summary = "all sources alike: a control"
    aggregation = "mean"
    needs_only_features = True

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        fresh: bool = False,
        width: int | None = None,
    ) -> None:
        super().__init__(Pathways(sources, target, fresh=fresh, width=width))

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Outputs of all pathways, with equal weights."""
        (log_weights, active), loss = self.compute_weights(observations)
        outputs = self.pathways.compute_outputs(observations, active, fresh, source_outputs)
        return Routed(None, loss, outputs, log_weights)

    def compute_weights(
        self, observations: Observations, noise: Tensor | None = None
    ) -> tuple[PathwayWeights, Float[Tensor, ""]]:
        """Equal weights, and a loss of zero."""
        n_pathways = len(self.pathways.names)
        shape = n_rows(observations), n_pathways
        log_weights = torch.full(shape, -math.log(n_pathways), device=device_of(observations))
        return PathwayWeights(log_weights, log_weights.isfinite()), log_weights.new_zeros(())
