"""Parameter averages: the sources' networks become one, which is trained further."""

import copy
from collections.abc import Sequence

from torch import nn

from hubrl.errors import BadConfig
from hubrl.methods.registry import register
from hubrl.methods.single import Alone
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.layers import Kernel, merge_layers, parameter_like, stack_layers
from hubrl.sources.source import Source

WHY = "Method 'soup' averages layers"


@register("soup")
class Soup(Alone):
    """One network whose parameters start at the mean of the sources' (model soups, Wortsman et al. 2022, uniform soup).

    A departure: they average after fine-tuning copies of one network, whose parameters agree; sources that were trained
    apart do not, and the mean of their parameters is a start that knows little. It is then trained as a whole.

    Args:
        sources: The sources, in order; all of one architecture.
        target: What they have to fit.
    """

    summary = "one network that starts at the mean of the sources' parameters, trained further"
    tunes = True
    corrects = False
    passes_observations = False

    def __init__(self, sources: Sequence[Source], target: Target) -> None:
        if not sources:
            raise BadConfig("Method 'soup' needs a source; the hub has none.")
        one = merge_layers(sources, "soup", WHY, _mean, head=target.level == "outputs")
        super().__init__(Pathways([one], target, fresh=False, project=False))


def _mean(name: str, layers: list[Kernel]) -> nn.Module:
    """A layer whose kernel and bias are the mean of several layers'."""
    made = copy.deepcopy(layers[0])
    made.weight = parameter_like(stack_layers(layers, "weight").mean(dim=0), layers[0])
    if made.bias is not None:
        made.bias = parameter_like(stack_layers(layers, "bias").mean(dim=0), layers[0])
    return made
