"""The Markdown tables of a study, from the rows of its runs and curves."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from hubrl.experiments.statistics import difference, estimate, iqm, mean_return, stratified
from hubrl.experiments.study_config import ZERO_SHOT

HUB_METHOD = "hub-pathway"
SCRATCH_HUB = "none"
"""The hub of runs without sources; they count for every hub of their target."""

TRAINED_SINGLES = ("finetune:", "residual:")
"""Prefixes of methods that train one source; the best of them is a rival of the hub."""

PHASES = {
    "first_quarter_return": "first quarter of training",
    "mean_train_return": "whole training",
    "eval_return": "evaluated at the end",
}
"""Columns of mean returns, and the part of a run that each covers."""


def target_hub_pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every target with every hub it was run with, in the table's order."""
    pairs = table[table["hub"] != SCRATCH_HUB][["task", "hub"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def rows_of(table: pd.DataFrame, task: str, hub: str) -> pd.DataFrame:
    """The rows of a target with a hub, scratch among them."""
    return table[(table["task"] == task) & table["hub"].isin([hub, SCRATCH_HUB])]


def returns_by_method(table: pd.DataFrame, task: str, hub: str) -> dict[str, list[float]]:
    """Evaluated returns of every method's runs on a target with a hub, scratch among them."""
    groups = rows_of(table, task, hub).groupby("method", sort=False)
    return {str(method): group["eval_return"].dropna().tolist() for method, group in groups}


def chosen_rows(table: pd.DataFrame, methods: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Rows of methods and seeds; with `zero-shot` also those of each source untouched.

    Args:
        table: Runs, evaluations or pathway weights.
        methods: Names of methods; empty for all.
        seeds: Seeds; empty for all.
    """
    names, chosen = table["method"].astype(str), pd.Series(True, index=table.index)
    if methods:
        untouched = names.str.startswith(f"{ZERO_SHOT}:") & (ZERO_SHOT in methods)
        chosen &= names.isin(methods) | untouched
    if seeds:
        chosen &= table["seed"].isin(seeds)
    return table[chosen]


def summary(table: pd.DataFrame) -> str:
    """A line for each target and hub: rivals, oracle, hub, and its lead over the best rival."""
    pairs = target_hub_pairs(table)
    header = [
        "target",
        "hub",
        "scratch",
        "zero-shot",
        "probe-commit",
        "best single source, trained",
        "oracle",
    ]
    header += ["**hub-pathway**", "minus the best rival", "ratio", "seeds"]
    runs = {pair: returns_by_method(table, *pair) for pair in pairs}
    return _markdown(
        header, [[*pair, *_summary_cells(runs[pair])] for pair in pairs if HUB_METHOD in runs[pair]]
    )


def _summary_cells(runs: dict[str, list[float]]) -> list[str]:
    own = runs[HUB_METHOD]
    single = _best(
        {name: values for name, values in runs.items() if name.startswith(TRAINED_SINGLES)}
    )
    rivals = {name: runs[name] for name in ("zero-shot", "probe-commit", single) if name in runs}
    best = _best(rivals)
    lead, ratio = "", ""
    if best is not None:
        mine, other = mean_return(own), mean_return(rivals[best])
        lead = f"{difference(own, rivals[best])} ({best})"
        # A ratio of returns below zero has no meaning.
        ratio = f"{mine / other:.2f}" if min(mine, other) > 0 else ""
    cells = [_cell(runs.get(name)) for name in ("scratch", "zero-shot", "probe-commit")]
    cells.append("" if single is None else f"{single} {_cell(runs[single])}")
    return [*cells, _cell(runs.get("oracle")), f"**{_cell(own)}**", lead, ratio, str(len(own))]


def _best(runs: dict[str, list[float]]) -> str | None:
    """The method with the greatest mean return; None without methods."""
    return max(runs, key=lambda name: mean_return(runs[name]), default=None)


def side_by_side(table: pd.DataFrame) -> str:
    """A line for each method and a column for each target and hub: the evaluated returns."""
    pairs = target_hub_pairs(table)
    runs = {pair: returns_by_method(table, *pair) for pair in pairs}
    methods = sorted({method for pair in pairs for method in runs[pair]})
    header = ["method", *(f"{task} ({hub})" for task, hub in pairs)]
    return _markdown(
        header, [[method, *(_cell(runs[pair].get(method)) for pair in pairs)] for method in methods]
    )


def over_targets(table: pd.DataFrame) -> str:
    """A line for each method that was run on several targets with a hub: means over targets.

    Intervals are stratified by target. Empty if no hub has two targets.
    """
    lines = []
    pairs = target_hub_pairs(table)
    for hub in dict.fromkeys(hub for _, hub in pairs):
        targets = [task for task, name in pairs if name == hub]
        rows = table[table["task"].isin(targets) & table["hub"].isin([hub, SCRATCH_HUB])]
        for method, group in rows.groupby("method", sort=False):
            by_target = [part for _, part in group.groupby("task", sort=False)]
            if len(by_target) < len(targets) or len(targets) < 2:
                continue
            cells = [_stratified_cell(by_target, column) for column in PHASES]
            lines.append([hub, str(method), *cells, str(len(by_target)), str(len(group))])
    return _markdown(["hub", "method", *PHASES.values(), "targets", "runs"], lines) if lines else ""


def _stratified_cell(by_target: Sequence[pd.DataFrame], column: str) -> str:
    known = [part[column].dropna().tolist() if column in part else [] for part in by_target]
    return str(stratified(known)) if all(known) else ""


def net_of_random(table: pd.DataFrame, by: str) -> str:
    """Returns at the end net of random play, as a share of a reference's, and over targets.

    `(return - random) / (reference - random)` of every method on every target on which both were
    run and the reference earns more; then mean, median and interquartile mean over those targets,
    and on how many the share exceeds one. Empty without such a target.

    Args:
        table: Runs.
        by: The reference: `scratch`, or `human` for human-normalised scores.
    """
    lines, pairs = [], target_hub_pairs(table)
    for hub in dict.fromkeys(hub for _, hub in pairs):
        shares: dict[str, dict[str, float]] = {}
        for task in (task for task, name in pairs if name == hub):
            means = {
                method: mean_return(returns)
                for method, returns in returns_by_method(table, task, hub).items()
                if returns
            }
            if means.get(by, -np.inf) <= means.get("random", np.inf):
                continue
            gain = means[by] - means["random"]
            for method in means.keys() - {by, "random", "human"}:
                share = (means[method] - means["random"]) / gain
                shares.setdefault(method, {})[task] = share
        for method in sorted(shares):
            values = np.array(list(shares[method].values()))
            over = (values.mean(), np.median(values), iqm(values))
            lines.append(
                [
                    hub,
                    method,
                    ", ".join(f"{task} {share:.2f}" for task, share in shares[method].items()),
                    *(f"{value:.2f}" for value in over),
                    f"{int((values > 1).sum())} of {len(values)}",
                ]
            )
    header = ["hub", "method", f"share of {by}'s gain over random play, by target"]
    header += ["mean", "median", "IQM", "above 1"]
    return _markdown(header, lines) if lines else ""


def seconds_to_scratch(
    group: pd.DataFrame, table: pd.DataFrame, curves: pd.DataFrame
) -> list[float]:
    """Seconds, evaluations included, until each run evaluates at the return where scratch ends.

    Args:
        group: Runs of one method on one target.
        table: All runs, scratch among them.
        curves: Evaluations of all runs.

    Returns:
        A number a run; infinite if it never reached that return; empty if scratch was not run.
    """
    scratch = table[(table["task"] == group["task"].iloc[0]) & (table["method"] == "scratch")][
        "eval_return"
    ]
    if not len(scratch) or not len(curves):
        return []
    bar = mean_return(scratch.to_numpy(dtype=float))
    keys = ["task", "hub", "method", "seed"]
    passed = curves[(curves["kind"] == "evaluation") & (curves["return"] >= bar)]
    first = passed.groupby(keys)["step"].min()
    # The last evaluation is a row of the runs and may be in no curve.
    ends = group["steps"].where(group["eval_return"] >= bar, np.inf)
    reached = [
        float(first.get(key, np.inf)) for key in group[keys].itertuples(index=False, name=None)
    ]
    seconds = group["wall_s"] * np.minimum(reached, ends) / group["steps"]
    return [float(value) for value in seconds]


def details(table: pd.DataFrame, curves: pd.DataFrame) -> str:
    """A line for each method on each target: returns at the end and over training, probe, time."""
    header = [
        "target",
        "hub",
        "method",
        "evaluated at the end",
        "mean training return",
        "probe steps",
        "seconds",
    ]
    header += ["until scratch's end", "seeds"]
    groups = table.groupby(["task", "hub", "method"], sort=False)
    return _markdown(
        header, [[*map(str, key), *_detail_cells(group, table, curves)] for key, group in groups]
    )


def _detail_cells(group: pd.DataFrame, table: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    probe = group["probe_steps"].dropna()
    trained = group[group["steps"] > 0]
    until = [] if trained.empty else seconds_to_scratch(trained, table, curves)
    return [
        _cell(group["eval_return"].tolist()),
        _cell(group["mean_train_return"].dropna().tolist()),
        f"{probe.mean():.0f}" if len(probe) else "",
        "" if trained.empty else f"{trained['wall_s'].mean():.0f}",
        "" if not until else "never" if np.isinf(np.mean(until)) else f"{np.mean(until):.0f}",
        str(len(group)),
    ]


def _cell(values: Sequence[float] | None) -> str:
    return str(estimate(values)) if values else ""


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [" | ".join(cells) for cells in (header, *lines)]
    return (
        "\n".join(
            [f"| {rows[0]} |", "|---" * len(header) + "|", *(f"| {row} |" for row in rows[1:])]
        )
        + "\n"
    )
