"""The figures of a study: intervals at the end, learning curves, pathway weights."""

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hubrl.errors import BadFile
from hubrl.experiments import tables
from hubrl.experiments.statistics import estimate, mean_return
from hubrl.experiments.study_tables import CURVE_COLUMNS
from hubrl.experiments.tables import HUB_METHOD
from hubrl.formats.files import write_atomically
from hubrl.training.pathway_figures import pathway_colors

UNTRAINED = {"zero-shot": ":", "oracle": "--", "random": "-."}
"""Methods without training, and the styles of their lines."""

COLOR_CYCLE = 10
"""Colours of matplotlib's cycle."""

COLUMNS = 3
"""Panels in a row of a figure."""


def write_reports(results: Path) -> None:
    """Write `table.md`, `intervals.png`, `curves.png` and `pathways.png` beside a study's tables.

    Raises:
        BadFile: If the study has no finished run.
        NotWritten: If the system refuses.
    """
    if not (results / "runs.csv").exists():
        raise BadFile(f"{results} has no runs.csv: no run of the study is finished.")
    runs = pd.read_csv(results / "runs.csv", dtype={"config": str, "probe_kept": str})
    curves = _read(results / "curves.csv", CURVE_COLUMNS)
    parts = [
        tables.summary(runs),
        tables.side_by_side(runs),
        tables.over_targets(runs),
        tables.net_of_random(runs, by="scratch"),
        tables.net_of_random(runs, by="human"),
        tables.details(runs, curves),
    ]
    write_atomically(results / "table.md", "\n".join(parts))
    pathways = _read(results / "pathways.csv", ("method",))
    pathways = pathways[pathways["method"] == HUB_METHOD]
    pairs = tables.target_hub_pairs(runs)
    if not pairs:
        return
    draw_intervals(runs, pairs, results / "intervals.png")
    if len(curves):
        draw_curves(curves, runs, pairs, results / "curves.png")
    if len(pathways):
        draw_pathways(pathways, results / "pathways.png")


def _read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(columns))


def draw_curves(
    curves: pd.DataFrame, runs: pd.DataFrame, pairs: list[tuple[str, str]], path: Path
) -> None:
    """Evaluations over steps, a panel for each target and hub.

    Bands are intervals over seeds; grey lines are methods without training.
    """
    styles = _line_styles(curves["method"])
    evaluations = curves[curves["kind"] == "evaluation"]

    def draw(axis: Axes, pair: tuple[str, str]) -> None:
        for method, group in tables.rows_of(evaluations, *pair).groupby("method", sort=False):
            _draw_curve(axis, group, str(method), styles[str(method)])
        untrained = tables.returns_by_method(runs, *pair)
        for method, style in UNTRAINED.items():
            if method in untrained:
                axis.axhline(
                    mean_return(untrained[method]),
                    color="grey",
                    linestyle=style,
                    linewidth=1,
                    label=method,
                )
        axis.set(xlabel="thousand steps", ylabel="return")

    figure = _panels(pairs, draw)
    lines = {
        label: line
        for axis in figure.axes
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    columns = 2 * min(len(figure.axes), COLUMNS)
    labels = sorted(lines)
    figure.legend(
        [lines[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=7,
    )
    _save(figure, path)


def _draw_curve(axis: Axes, group: pd.DataFrame, method: str, style: dict[str, Any]) -> None:
    # Probes of different lengths shift the evaluations of different seeds: the first belong
    # together, and so on.
    ranked = group.assign(rank=group.groupby("seed")["step"].rank(method="first"))
    points = [part for _, part in ranked.groupby("rank")]
    steps = np.array([part["step"].mean() for part in points]) / 1000
    estimates = [estimate(part["return"].tolist()) for part in points]
    axis.plot(steps, [one.value for one in estimates], label=method, **style)
    lows, highs = [one.low for one in estimates], [one.high for one in estimates]
    axis.fill_between(steps, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def draw_intervals(runs: pd.DataFrame, pairs: list[tuple[str, str]], path: Path) -> None:
    """Evaluated returns of every method, the best on top, a panel for each target and hub."""
    returns = {pair: tables.returns_by_method(runs, *pair) for pair in pairs}
    estimates = {
        pair: {name: estimate(values) for name, values in returns[pair].items() if values}
        for pair in pairs
    }

    def draw(axis: Axes, pair: tuple[str, str]) -> None:
        ranked = sorted(estimates[pair].items(), key=lambda item: item[1].value)
        for row, (method, one) in enumerate(ranked):
            color = (
                "black"
                if method == HUB_METHOD
                else "grey"
                if method.startswith(tuple(UNTRAINED))
                else "tab:blue"
            )
            axis.plot([one.low, one.high], [row, row], color=color, linewidth=3, alpha=0.4)
            axis.plot(one.value, row, "o", color=color, markersize=4)
        axis.set_yticks(range(len(ranked)), [method for method, _ in ranked], fontsize=7)
        axis.grid(axis="x", alpha=0.3)
        axis.set(xlabel="return at the end")

    most = max(len(methods) for methods in estimates.values())
    _save(_panels(pairs, draw, height=1 + 0.16 * most), path)


def draw_pathways(pathways: pd.DataFrame, path: Path) -> None:
    """Mean pathway weights over training, a panel for each target and hub; means over seeds.

    A pathway has the same colour in every panel.
    """
    colors = pathway_colors(pathways["pathway"].astype(str).tolist())
    groups = {
        (str(task), str(hub)): rows
        for (task, hub), rows in pathways.groupby(["task", "hub"], sort=False)
    }

    def draw(axis: Axes, pair: tuple[str, str]) -> None:
        bins = pd.cut(groups[pair]["step"], 20)
        means = groups[pair].groupby([bins, "pathway"], observed=True)["weight"].mean().unstack()
        middles = np.array([interval.mid for interval in means.index]) / 1000
        names = list(means.columns)
        axis.stackplot(
            middles,
            means.fillna(0).to_numpy().T,
            labels=names,
            colors=[colors[name] for name in names],
            linewidth=0,
        )
        axis.set(xlabel="thousand steps", ylabel="pathway weight", ylim=(0, 1))
        axis.legend(fontsize=6, loc="lower right")

    _save(_panels(list(groups), draw), path)


def _line_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A style for each method's line, the same in every panel."""
    styles: dict[str, dict[str, Any]] = {}
    for index, method in enumerate(sorted({str(method) for method in methods} - {HUB_METHOD})):
        dashes = ("-", "--", "-.", ":")[index // COLOR_CYCLE % 4]
        styles[method] = {"color": f"C{index % COLOR_CYCLE}", "linestyle": dashes, "linewidth": 1.2}
    return {**styles, HUB_METHOD: {"color": "black", "linestyle": "-", "linewidth": 2, "zorder": 3}}


def _panels(
    pairs: list[tuple[str, str]], draw: Callable[[Axes, tuple[str, str]], None], height: float = 3.6
) -> Figure:
    """A figure with a drawn and titled panel for each target and hub."""
    columns = min(len(pairs), COLUMNS)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(5 * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis, pair in zip(axes, pairs, strict=False):
        draw(axis, pair)
        axis.set_title(f"{pair[0]} ({pair[1]})")
    for unused in axes[len(pairs) :]:
        unused.set_visible(False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    write_atomically(path, drawn.getvalue())
