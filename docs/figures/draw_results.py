"""Learning curves of the pathway study.

`python docs/figures/draw_results.py` writes `docs/figures/results.svg`: a panel for each
group of targets, from `results/pathway/runs.csv` and `curves.csv`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_rows import GROUPS, NONE_FITS, ONE_SUFFICES, RESULTS, SEVERAL_NEEDED, Case, read_runs
from style import HUB, SCRATCH, SOURCE, write_svg

from hubrl.experiments.statistics import mean_return
from hubrl.experiments.tables import HUB_METHOD, returns_by_method

OUT = Path(__file__).with_name("results.svg")

PANELS = (ONE_SUFFICES[0], SEVERAL_NEEDED[0], NONE_FITS[0])
"""A target of each group."""


def bands(
    curves: pd.DataFrame, case: Case, method: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thousands of steps; interquartile mean, least and greatest return of their evaluations."""
    hub = "none" if method == "scratch" else case.hub
    chosen = (
        (curves["task"] == case.task)
        & (curves["hub"] == hub)
        & (curves["method"] == method)
        & (curves["kind"] == "evaluation")
    )
    by_step = [
        (step, group["return"].to_numpy(dtype=float))
        for step, group in curves[chosen].groupby("step")
    ]
    columns = [
        (float(step) / 1000, mean_return(values), values.min(), values.max())
        for step, values in by_step
        if len(values) > 2
    ]
    steps, mean, low, high = np.array(columns).T
    return steps, mean, low, high


def panel(axes: Axes, runs: pd.DataFrame, curves: pd.DataFrame, case: Case, question: str) -> None:
    """Learning curves of scratch and hub, and the best source as a level."""
    for method, colour, label in (
        ("scratch", SCRATCH, "SB3 from scratch"),
        (HUB_METHOD, HUB, "hub"),
    ):
        steps, mean, low, high = bands(curves, case, method)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2, label=label)
    level = mean_return(returns_by_method(runs, case.task, case.hub)["zero-shot"])
    low, high = axes.get_ylim()
    if level > low - (high - low):
        axes.axhline(
            level, color=SOURCE, linestyle="--", linewidth=1.5, label="best source, untouched"
        )
    else:
        axes.text(
            0.97,
            0.05,
            f"best source, untouched: {level:.0f}",
            transform=axes.transAxes,
            ha="right",
            color=SOURCE,
            fontsize=9,
        )
    axes.set_title(f"{question}\n{case.title}", fontsize=10)
    axes.set_xlabel("thousand steps", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)


def draw(runs: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """A panel for each group of targets."""
    figure = Figure(figsize=(10.0, 3.3), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, case, question in zip(panels, PANELS, GROUPS, strict=True):
        panel(axes, runs, curves, case, question)
    panels[0].set_ylabel("return, deterministic", fontsize=9)
    panels[0].legend(fontsize=8.5, loc="center right", frameon=False)
    return figure


if __name__ == "__main__":
    write_svg(draw(read_runs("pathway"), pd.read_csv(RESULTS / "pathway" / "curves.csv")), OUT)
