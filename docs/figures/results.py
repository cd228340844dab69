"""The results in README and docs, from the tables of a study: figure and Markdown tables.

    python docs/figures/results.py

Reads `results/pathway/runs.csv` and `curves.csv`, draws `docs/figures/results.svg`, and writes the tables between the lines
`<!-- results -->` and `<!-- /results -->` of the pages in `PAGES`. `tests/test_docs.py` checks that they are up to date.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import HUB, SCRATCH, SOURCE, write_svg

from hubrl.experiments.statistics import estimate, mean_return
from hubrl.experiments.tables import HUB_METHOD, TRAINED_SINGLES, returns_by_method

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results" / "pathway"
OUT = Path(__file__).with_name("results.svg")


class Case(NamedTuple):
    """A target with a hub."""

    task: str
    hub: str
    title: str
    """What the target is, in words."""


ONE_SUFFICES = [
    Case("gravity", "two", "HalfCheetah, gravity x1.5"),
    Case("dead-foot", "two", "HalfCheetah, one motor dead"),
    Case("weak-motors", "two", "HalfCheetah, motors at 60 %"),
    Case("gravity", "five", "gravity x1.5, five sources"),
    Case("walker", "walkers", "Walker2d, gravity x1.25"),
    Case("biped", "bipeds", "BipedalWalker"),
    Case("mountain-car", "cars", "MountainCar"),
    Case("lander-ppo", "landers", "LunarLander, PPO"),
    Case("lander", "landers", "LunarLander, DQN"),
]
SEVERAL_NEEDED = [
    Case("reversing-cued", "mirrored", "a motor changes its sign, observed"),
    Case("reversing-hidden", "mirrored", "a motor changes its sign, hidden"),
    Case("shuttle", "shuttle", "the paid direction changes"),
]
NONE_FITS = [
    Case("backward", "two", "HalfCheetah, backward"),
    Case("gravity", "random", "gravity x1.5, random networks"),
    Case("plateau", "poor", "HalfCheetah, one poor source"),
]
GROUPS = {"one source suffices": ONE_SUFFICES, "several are needed": SEVERAL_NEEDED, "none fits, or only a poor one": NONE_FITS}
"""All targets of the study, by the question they answer."""

PANELS = (ONE_SUFFICES[0], SEVERAL_NEEDED[0], NONE_FITS[0])
"""The figure's targets: one of each group."""

FIRST_SCREEN = [ONE_SUFFICES[0], ONE_SUFFICES[7], SEVERAL_NEEDED[0], SEVERAL_NEEDED[2], NONE_FITS[0], NONE_FITS[2]]
"""The README's rows: of each group two, one where the hub does well and one where it does less well."""


def read_runs() -> pd.DataFrame:
    """Every finished run of the study."""
    return pd.read_csv(RESULTS / "runs.csv", dtype={"config": str})


def cell(values: list[float] | None) -> str:
    """Interquartile mean with its interval; empty without runs."""
    return re.sub(r"-0\b", "0", str(estimate(values))) if values else ""


def best_trained(runs: dict[str, list[float]]) -> list[float] | None:
    """The best of what trains one source: chosen by a probe, or the best in hindsight."""
    rivals = [values for name, values in runs.items() if name.startswith((*TRAINED_SINGLES, "probe-commit"))]
    return max(rivals, key=mean_return, default=None)


def row(table: pd.DataFrame, case: Case) -> list[str]:
    """Scratch, best source untouched, best single source trained, oracle, hub."""
    runs = returns_by_method(table, case.task, case.hub)
    values = [runs.get("scratch"), runs.get("zero-shot"), best_trained(runs), runs.get("oracle")]
    return [case.title, *map(cell, values), f"**{cell(runs.get(HUB_METHOD))}**", str(len(runs.get(HUB_METHOD, [])))]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readme_table(table: pd.DataFrame) -> str:
    """At most six rows: one for each group and how the hub does there."""
    rows = [row(table, case) for case in FIRST_SCREEN]
    return markdown(
        ["target", "scratch", "best source, untouched", "best source, trained", "**hub**"],
        [[title, scratch, untouched, trained, hub] for title, scratch, untouched, trained, _, hub, _ in rows],
    )


def study_table(table: pd.DataFrame) -> str:
    """Every target of the study."""
    header = ["", "target", "scratch", "best source, untouched", "best source, trained", "oracle", "**hub-pathway**", "seeds"]
    rows = [[group if index == 0 else "", *row(table, case)] for group, cases in GROUPS.items() for index, case in enumerate(cases)]
    return markdown(header, rows)


PAGES = {"README.md": readme_table, "docs/pathway-study.md": study_table}
"""Pages with a table, and what makes it."""

MARKED = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def with_table(text: str, table: str) -> str:
    """A page's text with a table between its marks."""
    return MARKED.sub(lambda marks: f"{marks[1]}{table}\n{marks[2]}", text)


def bands(curves: pd.DataFrame, case: Case, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thousands of steps, and interquartile mean, least and greatest return of the evaluations there."""
    hub = "none" if method == "scratch" else case.hub
    chosen = (curves["task"] == case.task) & (curves["hub"] == hub) & (curves["method"] == method) & (curves["kind"] == "evaluation")
    by_step = [(step, group["return"].to_numpy(dtype=float)) for step, group in curves[chosen].groupby("step")]
    columns = [(float(step) / 1000, mean_return(values), values.min(), values.max()) for step, values in by_step if len(values) > 2]
    steps, mean, low, high = np.array(columns).T
    return steps, mean, low, high


def panel(axes: Axes, runs: pd.DataFrame, curves: pd.DataFrame, case: Case, question: str) -> None:
    """Learning curves of scratch and hub, and the best source as a level."""
    for method, colour, label in (("scratch", SCRATCH, "SB3 from scratch"), (HUB_METHOD, HUB, "hub")):
        steps, mean, low, high = bands(curves, case, method)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2, label=label)
    level = mean_return(returns_by_method(runs, case.task, case.hub)["zero-shot"])
    low, high = axes.get_ylim()
    if level > low - (high - low):
        axes.axhline(level, color=SOURCE, linestyle="--", linewidth=1.5, label="best source, untouched")
    else:
        axes.text(0.97, 0.05, f"best source, untouched: {level:.0f}", transform=axes.transAxes, ha="right", color=SOURCE, fontsize=9)
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


def main() -> None:
    """Draw the figure and write the tables."""
    runs = read_runs()
    write_svg(draw(runs, pd.read_csv(RESULTS / "curves.csv")), OUT)
    for name, make in PAGES.items():
        page = REPOSITORY / name
        page.write_text(with_table(page.read_text(encoding="utf-8"), make(runs)), encoding="utf-8")


if __name__ == "__main__":
    main()
