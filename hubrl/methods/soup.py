"""Model soup: the mean of the sources' parameters, trained further."""

import copy
from collections.abc import Sequence

from torch import nn

from hubrl.errors import BadConfig
from hubrl.methods.registry import register
from hubrl.methods.single import SingleSource
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.layers import Kernel, merge_layers, parameter_like, stack_layers
from hubrl.sources.source import Source

REASON = "Method 'soup' averages layers"


@register("soup")
class Soup(SingleSource):
    """A network that starts at the sources' mean (uniform soup, Wortsman et al. 2022).

    A departure: the paper averages fine-tuned copies of one network, whose parameters agree. Those
    of independent sources do not, so their mean is a weak start. It is then trained as a whole.

    Args:
        sources: The sources, in order; all of one architecture.
        target: The target's spaces and level.
    """

    summary = "one network that starts at the mean of the sources' parameters, trained further"
    tunes = True
    allows_residual = False
    passes_observations = False

    def __init__(self, sources: Sequence[Source], target: TargetSpec) -> None:
        if not sources:
            raise BadConfig("Method 'soup' needs a source; the hub has none.")
        one = merge_layers(sources, "soup", REASON, _mean, head=target.level == "outputs")
        super().__init__(Pathways([one], target, fresh=False, project=False))


def _mean(name: str, layers: list[Kernel]) -> nn.Module:
    """A layer whose kernel and bias are the mean of several layers'."""
    merged = copy.deepcopy(layers[0])
    merged.weight = parameter_like(stack_layers(layers, "weight").mean(dim=0), layers[0])
    if merged.bias is not None:
        merged.bias = parameter_like(stack_layers(layers, "bias").mean(dim=0), layers[0])
    return merged
