"""The strongest plain rival: one source, trained further as a whole."""

from collections.abc import Sequence

from hubrl.methods.registry import register
from hubrl.methods.single import Alone, the_one
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.source import Source


@register("finetune")
class Finetune(Alone):
    """One source alone, all of whose weights are trained further, with nothing beside it.

    At the level of outputs its own head goes on speaking; at the level of features its encoder is trained under a new
    head. Its learning rate is the algorithm's, unless `source_lr` says otherwise.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the one; needed where there are several.
    """

    summary = "one source alone, all of it trained further: the strongest plain rival"
    tunes = True
    corrects = False
    passes_observations = False

    def __init__(self, sources: Sequence[Source], target: Target, *, source: str | None = None) -> None:
        super().__init__(Pathways([the_one(sources, source, "finetune")], target, fresh=False, project=False))
