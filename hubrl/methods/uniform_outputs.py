"""The control for aggregated outputs: every source counts the same in the mean."""

from collections.abc import Sequence

from hubrl.methods.base import register
from hubrl.methods.uniform import Uniform
from hubrl.pathways import Target
from hubrl.sources.source import Source


@register("uniform-outputs")
class UniformOutputs(Uniform):
    """The mean of what all sources would do acts, with a residual: the paper's aggregation with weights that never learn.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        fresh: Whether a fresh pathway has the same say as each of them.
    """

    summary = "the mean of what all sources would do, with a residual: a control"
    levels = ("outputs",)
    aggregation = "mean"

    def __init__(self, sources: Sequence[Source], target: Target, *, fresh: bool = False) -> None:
        super().__init__(sources, target, fresh=fresh)
