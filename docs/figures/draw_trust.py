"""Arms and their episodes: `python docs/figures/draw_trust.py` writes `docs/concepts/trust.svg`.

Four environments of one training, drawn as rows; lengths of episodes are alike and not to scale.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import HUB, SOURCE, canvas, write_svg

OUT = Path(__file__).parents[1] / "concepts" / "trust.svg"

ROWS = [
    "p a b c L S L L L L S L L L L L L S L L L J L L L L L L L L S J",
    "p b c S L L J L L L L L L L L L L S L L L L L L J L L J L L S L",
    "p c a L L L J L L S L L L L L L L L L J L L L L L L L L L J L S",
    "p a b L S L L L L L L L S L L L J L L L L L L L L L L S L J L L",
]
"""Episodes of each environment: p a probe's segments, a b c the sources, L the learner, J it
judged, S a source judged."""

SHADES = {"a": 0.85, "b": 0.6, "c": 0.4}
LEFT, STEP, BOTTOM, HEIGHT = 1.05, 0.27, 1.25, 0.42


def episode(axes: Axes, x: float, y: float, kind: str) -> None:
    """One episode: its colour is its arm's, a thick edge marks one that judges."""
    faces = {"p": ("#d1d5db", 1.0), "L": (HUB, 0.3), "J": (HUB, 0.3), "S": (SOURCE, 0.6)}
    colour, alpha = faces.get(kind, (SOURCE, SHADES.get(kind, 1.0)))
    axes.add_patch(
        Rectangle((x, y), STEP - 0.03, HEIGHT, facecolor=colour, alpha=alpha, linewidth=0)
    )
    if kind in "JS":
        axes.add_patch(
            Rectangle(
                (x, y), STEP - 0.03, HEIGHT, facecolor="none", edgecolor="#111827", linewidth=1.6
            )
        )
    if kind in SHADES:
        axes.text(
            x + (STEP - 0.03) / 2,
            y + HEIGHT / 2,
            kind.upper(),
            ha="center",
            va="center",
            fontsize=9,
            color="white",
            weight="bold",
        )


def phase(axes: Axes, first: int, last: int, text: str, *, align: str = "center") -> None:
    """A bracket under some columns, its text below."""
    start, end, y = LEFT + first * STEP, LEFT + (last + 1) * STEP - 0.03, BOTTOM - 0.12
    axes.plot([start, start, end, end], [y, y - 0.1, y - 0.1, y], color="#374151", linewidth=1.2)
    x = {"center": (start + end) / 2, "left": start, "right": end - 0.06}[align]
    axes.text(x, y - 0.2, text, ha=align, va="top", fontsize=10, color="#111827")


def legend(axes: Axes) -> None:
    """Legend of the colours, above the rows."""
    entries = [
        ("p", "segments of a probe"),
        ("b", "a source (A, B, C), first episodes"),
        ("L", "the learner"),
        ("J", "the learner, judged"),
        ("S", "a source, judged"),
    ]
    widths, x = (1.95, 2.85, 1.35, 1.85, 1.6), 0.2
    for (kind, text), width in zip(entries, widths, strict=True):
        episode(axes, x, 3.55, kind)
        axes.text(
            x + STEP + 0.06, 3.55 + HEIGHT / 2, text, va="center", fontsize=9.5, color="#111827"
        )
        x += width


def draw() -> Figure:
    """Rows of episodes over a training, phases below."""
    figure, axes = canvas(10.0, 4.2)
    for row, kinds in enumerate(ROWS):
        y = BOTTOM + (3 - row) * 0.55
        axes.text(0.2, y + HEIGHT / 2, f"env {row + 1}", va="center", fontsize=10, color="#111827")
        for column, kind in enumerate(kinds.split()):
            episode(axes, LEFT + column * STEP, y, kind)
    legend(axes)
    phase(axes, 0, 0, "probe:\n2 %", align="right")
    phase(axes, 1, 3, "three episodes\nof each source", align="left")
    phase(
        axes,
        4,
        27,
        "a tenth of the episodes judges, deterministically;\nthe actor learns from the others",
    )
    phase(axes, 28, 31, "last tenth:\nevery other one")
    axes.text(LEFT, 0.12, "start of the training", fontsize=9.5, color="#6b7280")
    axes.text(LEFT + 32 * STEP, 0.12, "end", ha="right", fontsize=9.5, color="#6b7280")
    axes.annotate(
        "",
        (LEFT + 30.6 * STEP, 0.17),
        (LEFT + 6.2 * STEP, 0.17),
        arrowprops={"arrowstyle": "->", "color": "#6b7280"},
    )
    return figure


if __name__ == "__main__":
    write_svg(draw(), OUT)
