"""The cheapest rival: a new head on one source's features."""

from collections.abc import Sequence

from hubrl.methods.registry import register
from hubrl.methods.single import Alone, the_one
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.source import Source


@register("frozen")
class Frozen(Alone):
    """One source's encoder stays as it is, and a new head learns on its features; nothing else is seen.

    Progressive Networks (Rusu et al. 2016) have it as their baseline 2, where the output layer alone is trained.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the one; needed where there are several.
    """

    summary = "one source's frozen features under a new head"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True

    def __init__(self, sources: Sequence[Source], target: Target, *, source: str | None = None) -> None:
        super().__init__(Pathways([the_one(sources, source, "frozen")], target, fresh=False, project=False))
