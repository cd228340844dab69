"""What a study found: a table with intervals, curves, and who spoke when.

Reported as the field does (Agarwal et al. 2021): interquartile means, and 95 % intervals of a bootstrap over seeds.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from hubrl.errors import BadFile
from hubrl.formats.files import write_atomically

RESAMPLES = 2000

FEWEST = 3
"""Runs behind an interval that is shown."""

HUB_METHOD = "hub-pathway"

RIVALS = ("zero-shot", "probe-commit", "finetune:", "residual:")
"""The strongest that a user could do with one source: the first of the bars on a hub."""

UNTRAINED = {"zero-shot": ":", "oracle": "--"}
"""What is played without training, and how its line is drawn."""

N_COLORS = 10
"""Of matplotlib's cycle."""

N_COLUMNS = 3
"""Panels beside each other."""


class Estimate(NamedTuple):
    """An interquartile mean and the 95 % interval of a bootstrap."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        # Fewer runs carry no interval worth the name.
        return f"{self.value:.0f}" + (f" ({self.low:.0f}, {self.high:.0f})" if self.n >= FEWEST else "")


def iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half."""
    trimmed: np.ndarray = stats.trim_mean(values, 0.25, axis=axis)
    return trimmed


def resampled(values: Sequence[float], seed: int = 0) -> np.ndarray:
    """Interquartile means of bootstrap samples of some runs."""
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=float)
    return iqm(array[rng.integers(len(array), size=(RESAMPLES, len(array)))])


def estimate(values: Sequence[float]) -> Estimate:
    """Interquartile mean over runs with its interval."""
    low, high = np.quantile(resampled(values), [0.025, 0.975])
    return Estimate(float(iqm(np.asarray(values, dtype=float))), float(low), float(high), len(values))


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """How much more one method's runs earn than another's, with the interval of the difference."""
    low, high = np.quantile(resampled(one) - resampled(other, seed=1), [0.025, 0.975])
    return Estimate(float(iqm(np.asarray(one)) - iqm(np.asarray(other))), float(low), float(high), min(len(one), len(other)))


def write_reports(results: Path) -> None:
    """Write `table.md`, `intervals.png`, `curves.png` and `pathways.png` beside the tables of a study."""
    if not (results / "runs.csv").exists():
        raise BadFile(f"{results} has no runs.csv: no run of the study is finished.")
    table = pd.read_csv(results / "runs.csv", dtype={"config": str, "probe_kept": str})
    curves = pd.read_csv(results / "curves.csv") if (results / "curves.csv").exists() else pd.DataFrame(columns=CURVE_COLUMNS)
    texts = [summary(table), side_by_side(table), over_targets(table), details(table, curves)]
    write_atomically(results / "table.md", "\n".join(texts))
    if not hubs_of(table):
        return
    draw_intervals(table, results / "intervals.png")
    if len(curves):
        draw_curves(curves, table, results / "curves.png")
    pathways = results / "pathways.csv"
    if pathways.exists():
        draw_pathways(pd.read_csv(pathways), results / "pathways.png")


def hubs_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every target with every hub that it was tried with, as they stand in the table."""
    pairs = table[table["hub"] != "none"][["task", "hub"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def runs_of(table: pd.DataFrame, task: str, hub: str, column: str = "eval_return") -> dict[str, list[float]]:
    """Every method's runs on a target with a hub, scratch among them."""
    rows = table[(table["task"] == task) & table["hub"].isin([hub, "none"])]
    return {str(method): group[column].dropna().tolist() for method, group in rows.groupby("method", sort=False)}


def summary(table: pd.DataFrame) -> str:
    """A line for each target and hub: the rivals' best, scratch, the oracle, the hub, and their difference."""
    lines = [
        "| target | hub | scratch | zero-shot | probe-commit | best single source, trained | oracle | **hub-pathway** "
        "| minus the best rival | ratio | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, hub in hubs_of(table):
        runs = runs_of(table, task, hub)
        if HUB_METHOD not in runs:
            continue
        singles = {name: values for name, values in runs.items() if name.startswith(RIVALS[2:])}
        best_single = max(singles, key=lambda name: float(iqm(np.asarray(singles[name]))), default=None)
        rivals = {name: runs[name] for name in ("zero-shot", "probe-commit", best_single) if name in runs}
        best = max(rivals, key=lambda name: float(iqm(np.asarray(rivals[name]))), default=None)
        cells = [task, hub, _cell(runs.get("scratch")), _cell(runs.get("zero-shot")), _cell(runs.get("probe-commit"))]
        cells += ["" if best_single is None else f"{best_single} {_cell(singles[best_single])}"]
        cells += [_cell(runs.get("oracle")), f"**{_cell(runs[HUB_METHOD])}**"]
        if best is None:
            cells += ["", ""]
        else:
            own, other = float(iqm(np.asarray(runs[HUB_METHOD]))), float(iqm(np.asarray(rivals[best])))
            # Of returns below zero a ratio says nothing.
            ratio = f"{own / other:.2f}" if min(own, other) > 0 else ""
            cells += [f"{difference(runs[HUB_METHOD], rivals[best])} ({best})", ratio]
        lines.append("| " + " | ".join([*cells, str(len(runs[HUB_METHOD]))]) + " |")
    return "\n".join(lines) + "\n"


def side_by_side(table: pd.DataFrame) -> str:
    """A line for each method and a column for each target and hub: what was evaluated at the end."""
    pairs = hubs_of(table)
    runs = {pair: runs_of(table, *pair) for pair in pairs}
    methods = sorted({method for pair in pairs for method in runs[pair]})
    lines = ["| method | " + " | ".join(f"{task} ({hub})" for task, hub in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    lines += [f"| {method} | " + " | ".join(_cell(runs[pair].get(method)) for pair in pairs) + " |" for method in methods]
    return "\n".join(lines) + "\n"


OVER_TARGETS = ("first_quarter_return", "mean_train_return", "eval_return")
"""The mean returns of the episodes of the first quarter of the training and of all of it, and evaluated at the end."""


def over_targets(table: pd.DataFrame) -> str:
    """A line for each method that was run on several targets with a hub: means over targets, intervals stratified by them."""
    lines = [
        "| hub | method | first quarter of training | whole training | evaluated at the end | targets | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for hub in dict.fromkeys(hub for _, hub in hubs_of(table)):
        targets = [task for task, name in hubs_of(table) if name == hub]
        rows = table[table["task"].isin(targets) & table["hub"].isin([hub, "none"])]
        for method, group in rows.groupby("method", sort=False):
            by_target = [part for _, part in group.groupby("task", sort=False)]
            if len(by_target) < len(targets) or len(targets) < 2:
                continue
            cells = []
            for column in OVER_TARGETS:
                known = [part[column].dropna().tolist() for part in by_target] if column in group else [[]]
                cells.append(str(stratified(known)) if all(known) else "")
            lines.append("| " + " | ".join([hub, str(method), *cells, str(len(by_target)), str(len(group))]) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def stratified(by_target: Sequence[Sequence[float]]) -> Estimate:
    """Mean over targets of the mean over runs, with the interval of a bootstrap that draws runs within each target."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(runs, dtype=float) for runs in by_target]
    drawn = np.stack([runs[rng.integers(len(runs), size=(RESAMPLES, len(runs)))].mean(axis=1) for runs in arrays]).mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(np.mean([runs.mean() for runs in arrays])), float(low), float(high), min(len(runs) for runs in arrays))


CURVE_COLUMNS = ("task", "hub", "method", "seed", "kind", "step", "return")


def seconds_to_scratch(group: pd.DataFrame, table: pd.DataFrame, curves: pd.DataFrame) -> list[float]:
    """After how many seconds of wall clock each of some runs was evaluated to be where scratch ends, evaluations counted.

    Args:
        group: Runs of one method on one target.
        table: All runs, scratch among them.
        curves: Evaluations of all runs.

    Returns:
        A number a run; infinite if it never was there, and none at all where scratch was not run.
    """
    scratch = table[(table["task"] == group["task"].iloc[0]) & (table["method"] == "scratch")]["eval_return"]
    if not len(scratch) or not len(curves):
        return []
    bar = float(iqm(scratch.to_numpy(dtype=float)))
    found = []
    for run in group.itertuples():
        same = (curves["task"] == run.task) & (curves["hub"] == run.hub) & (curves["method"] == run.method) & (curves["seed"] == run.seed)
        there = curves[same & (curves["kind"] == "evaluation") & (curves["return"] >= bar)]["step"]
        reached = [float(there.min())] if len(there) else []
        if float(run.eval_return) >= bar:  # type: ignore[arg-type]
            reached.append(float(run.steps))  # type: ignore[arg-type]
        found.append(float(run.wall_s) * min(reached) / float(run.steps) if reached else np.inf)  # type: ignore[arg-type]
    return found


def details(table: pd.DataFrame, curves: pd.DataFrame) -> str:
    """Every method on every target: at the end, over the whole of training, and how long it took."""
    lines = [
        "| target | hub | method | evaluated at the end | mean training return | probe steps | seconds | until scratch's end | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, hub, method), group in table.groupby(["task", "hub", "method"], sort=False):
        curve = group["mean_train_return"].dropna().tolist()
        probe = group["probe_steps"].dropna()
        cells = [str(task), str(hub), str(method), _cell(group["eval_return"].tolist()), _cell(curve)]
        trained = group[group["steps"] > 0]
        until = [] if trained.empty else seconds_to_scratch(trained, table, curves)
        cells += [f"{probe.mean():.0f}" if len(probe) else "", "" if trained.empty else f"{trained['wall_s'].mean():.0f}"]
        cells += ["" if not until else "never" if np.isinf(np.mean(until)) else f"{np.mean(until):.0f}"]
        lines.append("| " + " | ".join([*cells, str(len(group))]) + " |")
    return "\n".join(lines) + "\n"


def draw_curves(curves: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """Evaluations over steps, a panel for each target and hub; bands are intervals over seeds, grey lines untouched."""
    pairs = hubs_of(table)
    figure, axes = _panels(len(pairs))
    looks = _looks(curves["method"])
    for axis, (task, hub) in zip(axes, pairs, strict=False):
        rows = curves[(curves["task"] == task) & curves["hub"].isin([hub, "none"]) & (curves["kind"] == "evaluation")]
        for method, group in rows.groupby("method", sort=False):
            # Probes of different lengths shift the evaluations of different seeds: the first belong together, and so on.
            points = group.assign(place=group.groupby("seed")["step"].rank(method="first"))
            places = [part for _, part in points.groupby("place")]
            steps = np.array([part["step"].mean() for part in places])
            estimates = [estimate(part["return"].tolist()) for part in places]
            look = looks[str(method)]
            axis.plot(steps / 1000, [one.value for one in estimates], label=str(method), **look)
            lows, highs = [one.low for one in estimates], [one.high for one in estimates]
            axis.fill_between(steps / 1000, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
        untouched = runs_of(table, task, hub)
        for method, style in UNTRAINED.items():
            if method in untouched:
                axis.axhline(float(iqm(np.asarray(untouched[method]))), color="grey", linestyle=style, linewidth=1, label=method)
        axis.set(title=f"{task} ({hub})", xlabel="thousand steps", ylabel="return")
    _legend(figure)
    _save(figure, path)


def draw_intervals(table: pd.DataFrame, path: Path) -> None:
    """What was evaluated at the end, a panel for each target and hub: a point a method with its interval, the best above."""
    pairs = hubs_of(table)
    runs = {pair: {method: values for method, values in runs_of(table, *pair).items() if values} for pair in pairs}
    most = max(len(methods) for methods in runs.values())
    figure, axes = _panels(len(pairs), height=1 + 0.16 * most)
    for axis, pair in zip(axes, pairs, strict=False):
        found = sorted(((estimate(values), method) for method, values in runs[pair].items()), key=lambda each: each[0].value)
        for place, (one, method) in enumerate(found):
            color = "black" if method == HUB_METHOD else "grey" if method.startswith(tuple(UNTRAINED)) else "tab:blue"
            axis.plot([one.low, one.high], [place, place], color=color, linewidth=3, alpha=0.4)
            axis.plot(one.value, place, "o", color=color, markersize=4)
        axis.set_yticks(range(len(found)), [method for _, method in found], fontsize=7)
        axis.grid(axis="x", alpha=0.3)
        axis.set(title=f"{pair[0]} ({pair[1]})", xlabel="return at the end")
    _save(figure, path)


def draw_pathways(pathways: pd.DataFrame, path: Path) -> None:
    """The hub's mean pathway weights over training, a panel for each target and hub; means over seeds."""
    rows = pathways[pathways["method"] == HUB_METHOD]
    groups = list(rows.groupby(["task", "hub"], sort=False))
    if not groups:
        return
    figure, axes = _panels(len(groups))
    for axis, ((task, hub), group) in zip(axes, groups, strict=False):
        bins = pd.cut(group["step"], 20)
        means = group.groupby([bins, "pathway"], observed=True)["weight"].mean().unstack()
        middles = np.array([interval.mid for interval in means.index]) / 1000
        axis.stackplot(middles, means.fillna(0).to_numpy().T, labels=list(means.columns), linewidth=0)
        axis.set(title=f"{task} ({hub})", xlabel="thousand steps", ylabel="pathway weight", ylim=(0, 1))
        axis.legend(fontsize=6, loc="lower right")
    _save(figure, path)


def _cell(values: Sequence[float] | None) -> str:
    return "" if not values else str(estimate(values))


def _looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each method's line is drawn, in every panel alike."""
    looks: dict[str, dict[str, Any]] = {}
    for index, method in enumerate(sorted({str(method) for method in methods} - {HUB_METHOD})):
        looks[method] = {"color": f"C{index % N_COLORS}", "linestyle": ("-", "--", "-.", ":")[index // N_COLORS % 4], "linewidth": 1.2}
    return {**looks, HUB_METHOD: {"color": "black", "linestyle": "-", "linewidth": 2, "zorder": 3}}


def _legend(figure: Figure) -> None:
    """One for all panels, below them."""
    lines = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = sorted(lines)
    n_columns = 2 * min(len(figure.axes), N_COLUMNS)
    figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=n_columns, fontsize=7)


def _panels(n: int, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    columns = min(n, N_COLUMNS)
    n_rows = -(-n // columns)
    figure = Figure(figsize=(5 * columns, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False)
    flat = list(axes.ravel())
    for unused in flat[n:]:
        unused.set_visible(False)
    return figure, flat


def _save(figure: Figure, path: Path) -> None:
    making = path.with_name(f".{path.name}")
    figure.savefig(making, dpi=110, format="png")
    making.replace(path)
