"""A start from the best source: its network is copied, and trains on alone."""

from collections.abc import Sequence

from hubrl.methods.hub_pathway import HubPathway
from hubrl.methods.registry import register
from hubrl.routing.target import TargetSpec
from hubrl.sources.source import Source


@register("warm-start")
class WarmStart(HubPathway):
    """One ordinary network that goes on from a copy of the best source.

    Whole episodes, on Atari whole games, compare the sources with each other and with an untrained
    network, which trains meanwhile. Once a source is clearly better than that, its layers become
    the agent's own, which trains on alone at the speed of one network; the source acts in
    evaluation until its copy earns more. Where no source is clearly better, training goes on from
    scratch. The method is hubrl's; a pretrained agent whose critic is trained first follows
    Wolczyk et al. (2024).

    Only networks of SB3's shapes can be copied: alike but for the number of discrete actions, which
    are matched by their meanings. The agent's own network takes the shape of the first such source
    unless `net_arch` is given.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
    """

    summary = "the best source's network, copied and trained on alone"
    levels = ("outputs",)
    q_learning = None
    keeps_frozen = True
    copies_source = True

    def __init__(self, sources: Sequence[Source], target: TargetSpec) -> None:
        super().__init__(sources, target, noise=False, explore_coef=0.0)
