"""Rows of the studies, and cells of the tables that are made of them."""

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hubrl.experiments.statistics import estimate, mean_return
from hubrl.experiments.tables import returns_by_method

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results"
STUDIES = REPOSITORY / "configs" / "studies"

Runs = dict[str, list[float]]
"""Evaluated returns of each method's runs on one target with one hub."""


class Case(NamedTuple):
    """A target with a hub, and its description in words."""

    task: str
    hub: str
    title: str


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
GROUPS = {
    "one source suffices": ONE_SUFFICES,
    "several are needed": SEVERAL_NEEDED,
    "none fits, or only a poor one": NONE_FITS,
}
"""All targets of the pathway study, by the question they answer."""

UNTUNED = [
    Case("mediocre", "mediocre", "HalfCheetah, gravity x1.25, three mediocre sources"),
    Case("walker-motors", "walkers", "Walker2d, motors at 80 %"),
    Case("slippery", "five", "HalfCheetah on ice (friction 0.3), five sources"),
    Case("acrobot", "acrobots", "Acrobot with other links"),
    Case("cartpole", "cartpoles", "CartPole, heavy and long"),
]


def read_runs(study: str) -> pd.DataFrame:
    """Every finished run of a study."""
    return pd.read_csv(RESULTS / study / "runs.csv", dtype={"config": str})


def cell(values: list[float] | None) -> str:
    """Interquartile mean with its interval; empty without runs."""
    return re.sub(r"-0(?![\d.])", "0", str(estimate(values))) if values else ""


def mean_cell(values: list[float] | None) -> str:
    """Interquartile mean alone."""
    return f"{mean_return(values):.0f}" if values else ""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def runs_of(table: pd.DataFrame, case: Case) -> Runs:
    """A target's runs."""
    return returns_by_method(table, case.task, case.hub)
