"""The README's picture of a hub.

`python docs/figures/draw_overview.py` writes `docs/figures/overview.svg`.
"""

from pathlib import Path

from matplotlib.figure import Figure
from style import FRESH, HUB, SOURCE, arrow, box, canvas, write_svg

OUT = Path(__file__).with_name("overview.svg")


def draw() -> Figure:
    """Observation, pathways, router, aggregation, action."""
    figure, axes = canvas(10.0, 3.9)
    box(axes, (0.2, 1.55), (1.4, 0.8), "observation")
    names = ["pretrained agent 1", "pretrained agent 2", "pretrained agent 3", "fresh network"]
    for index, name in enumerate(names):
        y = 2.85 - 0.62 * index
        fresh = index == len(names) - 1
        colour = FRESH if fresh else SOURCE
        box(axes, (3.0, y), (2.3, 0.48), name, colour)
        arrow(axes, (1.65, 1.95), (2.95, y + 0.24), colour)
        arrow(axes, (5.35, y + 0.24), (6.55, 1.95), colour)
    box(axes, (3.0, 0.2), (2.3, 0.55), "router", HUB)
    arrow(axes, (0.9, 1.5), (2.95, 0.48), HUB)
    box(axes, (6.6, 1.45), (1.5, 1.0), "choose one\nor average")
    arrow(axes, (5.35, 0.48), (7.35, 1.4), HUB)
    axes.text(6.75, 0.62, "pathway weights", color=HUB, fontsize=10.5)
    box(axes, (8.7, 1.55), (1.1, 0.8), "action")
    arrow(axes, (8.15, 1.95), (8.65, 1.95))
    axes.text(
        4.15,
        3.52,
        "hub: a pathway for each agent",
        ha="center",
        fontsize=11,
        color="#111827",
        weight="bold",
    )
    return figure


if __name__ == "__main__":
    write_svg(draw(), OUT)
