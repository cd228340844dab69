"""The report of a study: the tables and figures of its results as one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubrl import __version__
from hubrl.errors import BadFile
from hubrl.experiments import tables
from hubrl.experiments.statistics import estimate
from hubrl.experiments.study_config import ORACLE, ZERO_SHOT
from hubrl.experiments.tables import HUB_METHOD
from hubrl.formats.files import write_atomically
from hubrl.reports import page, plots
from hubrl.reports.run_log import Series
from hubrl.training.pathway_figures import PALETTE

PAGE = "report.html"
MOST_COLUMNS = 3
"""Targets up to which their returns stand side by side."""

HUB_COLOR, UNTRAINED_COLOR = "#111111", "#9a9aa2"

Pair = tuple[str, str]
"""A target and a hub."""


def write_study_page(
    results: Path,
    out: Path | None = None,
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Path:
    """Write the report of a study's results as one HTML page.

    Args:
        results: The folder of its results.
        out: The page; `report.html` in that folder by default.
        methods: The only methods to show; all by default.
        seeds: The only seeds to show; all by default.

    Returns:
        The page.

    Raises:
        BadFile: If the study has no finished run.
    """
    runs, curves, pathways = (
        tables.chosen_rows(table, methods, seeds)
        for table in (
            read_runs(results),
            _read(results / "curves.csv"),
            _read(results / "pathways.csv"),
        )
    )
    colors = method_colors(runs["method"].unique().tolist())
    pairs = tables.target_hub_pairs(runs) or [
        (str(task), tables.SCRATCH_HUB) for task in runs["task"].unique()
    ]
    parts = [_tables(runs, len(pairs))]
    for index, pair in enumerate(pairs):
        parts.append(_target(index, pair, runs, curves, pathways, colors))
    details = page.markdown_table(tables.details(runs, curves))
    parts.append(page.section("Details", "", page.folded_html("every method", details)))
    lead = f"{len(runs)} runs, {runs['method'].nunique()} methods, {runs['task'].nunique()} targets"
    text = page.page(
        results.resolve().name, lead, parts, plots.script(), f"Made by hubrl {__version__}."
    )
    place = out or results / PAGE
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, text)
    return place


def _tables(runs: pd.DataFrame, n_pairs: int) -> str:
    """The returns of all methods: side by side, behind a summary if there are many targets."""
    side_by_side = page.markdown_table(tables.side_by_side(runs))
    if n_pairs > MOST_COLUMNS:
        summary = page.markdown_table(tables.summary(runs))
        over_targets = page.markdown_table(tables.over_targets(runs))
        every = page.folded_html("every method on every target", side_by_side)
        side_by_side = "".join([summary, over_targets, every])
    for by in ("scratch", "human"):
        side_by_side += page.markdown_table(tables.net_of_random(runs, by=by))
    note = "Interquartile means over seeds with 95 % bootstrap intervals (from three seeds on)."
    return page.section("Return at the end", note, side_by_side)


def read_runs(results: Path) -> pd.DataFrame:
    """The table of a study's runs.

    Raises:
        BadFile: If there is none.
    """
    path = results / "runs.csv"
    if not path.exists():
        raise BadFile(f"{results} has no runs.csv: no run of the study is finished.")
    return pd.read_csv(path, dtype={"config": str, "probe_kept": str})


def _read(path: Path) -> pd.DataFrame:
    columns = ["task", "hub", "method", "seed", "kind", "step", "return", "pathway", "weight"]
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method: black for the hub's, grey for those without training."""
    colors = {}
    trained = sorted(name for name in methods if not _untrained(name) and name != HUB_METHOD)
    for index, name in enumerate(trained):
        colors[name] = PALETTE[index % len(PALETTE)]
    colors |= {name: UNTRAINED_COLOR for name in methods if _untrained(name)}
    return {**colors, HUB_METHOD: HUB_COLOR}


def _untrained(method: str) -> bool:
    return method.startswith((ZERO_SHOT, ORACLE))


def _target(
    index: int,
    pair: Pair,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    pathways: pd.DataFrame,
    colors: dict[str, str],
) -> str:
    """The figures of one target with one hub."""
    task, hub = pair
    drawn = [plots.div(_intervals(runs, pair, colors), f"intervals{index}")]
    evaluated = tables.rows_of(curves[curves["kind"] == "evaluation"], task, hub)
    if len(evaluated):
        drawn.append(plots.div(_curves(evaluated, colors), f"curves{index}"))
    weights = _weights(pathways, pair)
    if weights:
        drawn.append(plots.div(plots.stacked(weights, "pathway weight"), f"weights{index}"))
    note = "Intervals; evaluations over training; the hub method's pathway weights over training."
    return page.section(f"{task}, hub {hub}", note, *drawn)


def _intervals(runs: pd.DataFrame, pair: Pair, colors: dict[str, str]) -> Any:
    returns = tables.returns_by_method(runs, *pair)
    found = {name: estimate(values) for name, values in returns.items() if values}
    traces = [
        plots.interval(one, name, colors[name])
        for name, one in sorted(found.items(), key=lambda item: item[1].value)
    ]
    height = 120 + 28 * len(traces)
    made = plots.figure(
        traces, "return at the end", "", showlegend=False, height=height, hovermode="closest"
    )
    made.update_xaxes(rangemode="normal")
    made.update_yaxes(automargin=True)
    return made


def _curves(evaluated: pd.DataFrame, colors: dict[str, str]) -> Any:
    """Mean evaluations over steps; the first of every seed belong together, and so on."""
    traces = []
    for method, group in evaluated.groupby("method", sort=False):
        ranked = group.assign(rank=group.groupby("seed")["step"].rank(method="first"))
        points = [part for _, part in ranked.groupby("rank")]
        steps = [float(part["step"].mean()) for part in points]
        values = [estimate(part["return"].tolist()).value for part in points]
        traces.append(plots.line(steps, values, str(method), colors[str(method)]))
    return plots.figure(traces, "environment steps", "return")


def _weights(pathways: pd.DataFrame, pair: Pair) -> dict[str, Series]:
    """Mean weights of the hub's method over seeds, in twenty parts of the training."""
    own = pathways[
        (pathways["method"] == HUB_METHOD)
        & (pathways["task"] == pair[0])
        & (pathways["hub"] == pair[1])
    ]
    if not len(own):
        return {}
    bins = pd.cut(own["step"], 20)
    means = own.groupby([bins, "pathway"], observed=True)["weight"].mean().unstack().fillna(0)
    steps = [int(np.ceil(interval.right)) for interval in means.index]
    order = list(dict.fromkeys(own["pathway"]))
    return {str(name): Series(steps, means[name].tolist()) for name in order}
