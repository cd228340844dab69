"""The cheapest rival: a new head on one source's features."""

from collections.abc import Sequence

from hubrl.methods.registry import register
from hubrl.methods.single import SingleSource, select_source
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.source import Source


@register("frozen")
class Frozen(SingleSource):
    """A new head on the frozen features of one source, and nothing else.

    Baseline 2 of Progressive Networks (Rusu et al. 2016), where the output layer alone is trained.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        source: Name of the one source; needed where there are several.
    """

    summary = "one source's frozen features under a new head"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True

    def __init__(
        self, sources: Sequence[Source], target: TargetSpec, *, source: str | None = None
    ) -> None:
        one = select_source(sources, source, "frozen")
        super().__init__(Pathways([one], target, fresh=False, project=False))
