"""Colours and settings of the documentation's figures.

Every kind of agent has one colour, and every run writes the same SVG.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HUB, SOURCE, FRESH, SCRATCH, NEUTRAL = "#c2410c", "#1d4ed8", "#15803d", "#6b7280", "#374151"
"""The hub, a pretrained source, the fresh pathway, plain SB3 from scratch, everything else."""

Point = tuple[float, float]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure without axes, whose units are inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, corner: Point, size: Point, text: str, colour: str = NEUTRAL, fontsize: float = 11
) -> None:
    """A rounded box with a text in its middle."""
    shape = FancyBboxPatch(
        corner,
        *size,
        boxstyle="round,pad=0,rounding_size=0.1",
        edgecolor=colour,
        facecolor=mpl.colors.to_rgba(colour, 0.1),
        linewidth=1.5,
    )
    axes.add_patch(shape)
    axes.text(
        corner[0] + size[0] / 2,
        corner[1] + size[1] / 2,
        text,
        ha="center",
        va="center",
        fontsize=fontsize,
        color="#111827",
    )


def arrow(axes: Axes, start: Point, end: Point, colour: str = NEUTRAL, style: str = "-") -> None:
    """An arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            color=colour,
            linewidth=1.3,
            linestyle=style,
        )
    )


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure with text as outlines, byte for byte the same on every run."""
    mpl.rcParams["svg.hashsalt"] = path.stem
    figure.savefig(path, metadata={"Date": None, "Creator": None})
