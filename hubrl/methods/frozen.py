"""The cheapest rival: a new head on one source's features."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.methods.base import Routed
from hubrl.methods.registry import register
from hubrl.methods.single import SingleSource, select_source
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.convolutions import cut_behind_convolutions
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

FEATURES, CONVOLUTIONS = "features", "convolutions"
"""What is read of the source."""


@register("frozen")
class Frozen(SingleSource):
    """A new head on the frozen features of one source, and nothing else.

    Baseline 2 of Progressive Networks (Rusu et al. 2016), where the output layer alone is trained.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        source: Name of the one source; needed where there are several.
        reads: What is read of the source: its `features`, or its last `convolutions`, behind which
            a new linear layer of the features' width is trained too.
    """

    summary = "one source's frozen features under a new head"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        source: str | None = None,
        reads: str = FEATURES,
    ) -> None:
        one = select_source(sources, source, "frozen")
        if reads not in (FEATURES, CONVOLUTIONS):
            raise BadConfig(
                f"reads={reads!r} was given; expected {FEATURES!r} or {CONVOLUTIONS!r}."
            )
        read = cut_behind_convolutions(one) if reads == CONVOLUTIONS else one
        super().__init__(Pathways([read], target, fresh=False, project=False))
        self.precision = target.precision
        self.last = nn.Linear(read.width, one.width) if reads == CONVOLUTIONS else None
        """Linear layer behind the convolutions, which is trained."""
        self.features_dim = one.width

    def forward(self, observations: Observations, **given: Any) -> Routed:
        """Features of the source, or of the layer behind its convolutions."""
        routed = super().forward(observations, **given)
        if self.last is None:
            return routed
        parts = routed.features, self.last.weight, self.last.bias
        if self.precision == "bfloat16":
            rows, weight, bias = (part.bfloat16() for part in parts)
        else:
            rows, weight, bias = parts
        return routed._replace(whole=functional.linear(rows, weight, bias).relu().float())
