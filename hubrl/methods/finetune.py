"""Fine-tuning: one source, trained further as a whole."""

from collections.abc import Sequence

from hubrl.methods.registry import register
from hubrl.methods.single import SingleSource, select_source
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.source import Source


@register("finetune")
class Finetune(SingleSource):
    """One source alone, all of whose weights are trained further.

    At the level of outputs its own head is kept; at the level of features its encoder is trained
    under a new head. Its learning rate is the algorithm's unless `source_lr` is given.

    PPO and A2C copy a source of SB3's shapes, with its critic if that fits, into their own network,
    which trains on as any other. Other sources are trained beside a new critic.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        source: Name of the one source; needed where there are several.
    """

    summary = "one source alone, all of it trained further: the strongest plain rival"
    tunes = True
    starts_copied = True
    allows_residual = False
    passes_observations = False
    q_learning = "source"

    def __init__(
        self, sources: Sequence[Source], target: TargetSpec, *, source: str | None = None
    ) -> None:
        one = select_source(sources, source, "finetune")
        super().__init__(Pathways([one], target, fresh=False, project=False))
