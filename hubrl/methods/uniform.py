"""The control: every source has the same say."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.methods.base import Routed, Weighing
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.routing.weights import Weighted
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("uniform")
class Uniform(Weighing):
    """Every source counts the same, whatever is observed: the mean of their features, or of what they would do, with a residual.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        fresh: Whether a fresh pathway has the same say as each of them.
        width: Width of the features; the widest source's if not given, but at most 128.
    """

    summary = "all sources alike: a control"
    aggregation = "mean"
    takes_heard = True

    def __init__(self, sources: Sequence[Source], target: Target, *, fresh: bool = False, width: int | None = None) -> None:
        super().__init__(Pathways(sources, target, fresh=fresh, width=width))

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """The mean of what they say."""
        (log_weights, active), loss = self.weigh(observations)
        return Routed(None, loss, self.pathways.speak(observations, active, fresh), log_weights)

    def weigh(self, observations: Observations, noise: Tensor | None = None) -> tuple[Weighted, Float[Tensor, ""]]:
        """The same for all."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        n_pathways = len(self.pathways.names)
        log_weights = torch.full((len(rows), n_pathways), -math.log(n_pathways), device=rows.device)
        return Weighted(log_weights, log_weights.isfinite()), log_weights.new_zeros(())
