"""The strongest plain rival: one source, trained further as a whole."""

from hubrl.methods.base import register
from hubrl.methods.single import Single


@register("finetune")
class Finetune(Single):
    """One source alone, all of whose weights are trained further, with nothing beside it.

    At the level of outputs its own head goes on speaking; at the level of features its encoder is trained under a new
    head. Its learning rate is the algorithm's, unless `source_lr` says otherwise.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the one; needed where there are several.
        width: Width of the features; the source's if not given.
    """

    summary = "one source alone, all of it trained further: the strongest plain rival"
    tunes = True
    corrects = False
