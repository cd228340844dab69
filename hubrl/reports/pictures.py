"""The picture of a task with the pathways' weights and the acting pathway's name under it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from hubrl.reports.run_log import in_words
from hubrl.training.pathway_figures import pathway_colors

Picture = UInt8[np.ndarray, "height width 3"]

WIDTH = 480
"""Least width of a picture; smaller ones, as of Atari games, are enlarged."""

MARGIN, LINE, BAR = 12, 22, 18
"""Margin, height of a line of text and height of the bar, in pixels."""

INK, PAPER, DIM = "#1c1c1e", "#ffffff", "#6a6a72"


class Moment(NamedTuple):
    """One step of an episode, as it is shown."""

    picture: Picture
    """The environment's own picture."""
    weights: dict[str, float]
    """Pathway weights by name; empty for agents without weights."""
    acting: str | None
    """The pathway that chose the action; None where no single one does."""
    step: int
    note: str
    """What stands to the right: the return so far."""


def annotate(moment: Moment, agent: str) -> Picture:
    """A picture with the acting pathway's name and a bar of the pathway weights under it.

    Args:
        moment: The step.
        agent: Name where no single pathway acts.
    """
    image = Image.fromarray(moment.picture).convert("RGB")
    if image.width < WIDTH:
        factor = -(-WIDTH // image.width)
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    width = image.width + image.width % 2  # videos have even sides
    rows = _legend_rows(moment.weights, width)
    panel = MARGIN + LINE + (BAR + MARGIN // 2 if rows else 0) + LINE * len(rows) + MARGIN
    height = image.height + panel
    made = Image.new("RGB", (width, height + height % 2), PAPER)
    made.paste(image, (0, 0))
    _draw_panel(ImageDraw.Draw(made), moment, agent, rows, top=image.height + MARGIN)
    return np.asarray(made)


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    moment: Moment,
    agent: str,
    rows: list[list[tuple[str, str]]],
    *,
    top: int,
) -> None:
    width = draw.im.size[0]
    colors = pathway_colors(list(moment.weights))
    color = colors.get(moment.acting or "", INK)
    name = f"{in_words(moment.acting)} acts" if moment.acting else agent
    draw.text((MARGIN, top), name, fill=color, font=_font(17))
    right = f"step {moment.step}   {moment.note}"
    font = _font(14)
    draw.text((width - MARGIN - draw.textlength(right, font), top + 3), right, fill=DIM, font=font)
    if not rows:
        return
    top += LINE + MARGIN // 4
    _draw_bar(draw, moment.weights, colors, top=top, width=width)
    top += BAR + MARGIN // 2
    for row in rows:
        left = float(MARGIN)
        for pathway, text in row:
            draw.rectangle((left, top + 4, left + 10, top + 14), fill=colors[pathway])
            draw.text((left + 16, top), text, fill=INK, font=_font(13))
            left += _entry_width(text)
        top += LINE


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    weights: Mapping[str, float],
    colors: Mapping[str, str],
    *,
    top: int,
    width: int,
) -> None:
    left, length = float(MARGIN), width - 2 * MARGIN
    for name, weight in weights.items():
        right = left + weight * length
        if right - left >= 1:
            draw.rectangle((left, top, right, top + BAR), fill=colors[name])
        left = right


def _legend_rows(weights: Mapping[str, float], width: int) -> list[list[tuple[str, str]]]:
    """Pathways with the text of their weight, in as many rows as they need."""
    rows: list[list[tuple[str, str]]] = []
    left = float(width)
    for name, weight in weights.items():
        # As wide at 100 % as at 1 %: the picture has the same rows in every step.
        text = f"{name} {weight:>4.0%}"
        needed = _entry_width(f"{name} 100%")
        if left + needed > width - MARGIN:
            rows.append([])
            left = float(MARGIN)
        rows[-1].append((name, text))
        left += needed
    return rows


def _entry_width(text: str) -> float:
    return 16 + _font(13).getlength(text.rpartition(" ")[0].rstrip() + " 100%") + 14


def _font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found
