"""Colours of pathways, the same in every figure, and the figure of who acted."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hubrl.routing.pathways import FRESH
from hubrl.selection.arm_evidence import TOGETHER_ARM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#b5a900",
    "#7f5fb5",
    "#8c564b",
    "#17becf",
)
"""Colours of sources, in the order of the hub: those of Okabe and Ito, and four more."""

NO_SOURCE = {FRESH: "#7a7a7a", TOGETHER_ARM: "#111111"}
"""Colours of what is no source: grey for the fresh pathway, black for all pathways together."""


def pathway_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each pathway or arm; a source's depends on its position among the sources."""
    sources = [name for name in dict.fromkeys(names) if name not in NO_SOURCE]
    by_position = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(sources)}
    return {**by_position, **NO_SOURCE}


def draw_shares(steps: Sequence[int], shares: Mapping[str, Sequence[float]]) -> "Figure":
    """Shares over a training as stacked areas, one a pathway.

    Args:
        steps: Environment steps of the records.
        shares: Share of the steps in which each pathway acted, record by record.
    """
    from matplotlib.figure import Figure  # only here: it takes long to import

    colors = pathway_colors(list(shares))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.stackplot(
        steps,
        *shares.values(),
        labels=list(shares),
        colors=[colors[name] for name in shares],
        linewidth=0,
    )
    axis.set(xlabel="environment steps", ylabel="share of steps", ylim=(0, 1))
    if len(steps) > 1:
        axis.set_xlim(steps[0], steps[-1])
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
