"""The result tables of a study: runs, learning curves, pathway weights.

results/<study>/runs.csv        one row a run
results/<study>/curves.csv      evaluations and training returns over steps
results/<study>/pathways.csv    pathway weights over steps
results/<study>/versions.json   of Python and packages at the last run
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hubrl import __version__
from hubrl.experiments.run_record import collect_versions, training_curve
from hubrl.experiments.study_config import ZERO_SHOT
from hubrl.experiments.study_plan import Job, Key
from hubrl.formats.files import write_atomically

RUN_KEYS = ("task", "hub", "method", "seed")
RUN_COLUMNS = (
    "task",
    "hub",
    "method",
    "algorithm",
    "seed",
    "steps",
    "first_quarter_return",
    "mean_train_return",
    "final_return",
    "eval_return",
    "eval_std",
    "probe_steps",
    "probe_kept",
    "wall_s",
    "hubrl_version",
    "config",
)
CURVE_COLUMNS = (*RUN_KEYS, "kind", "step", "return")
PATHWAY_COLUMNS = (*RUN_KEYS, "step", "pathway", "weight")

CURVE_POINTS = 50
"""Points of a training curve in the results; each is the mean of its episodes."""

WEIGHT_TAG = "pathway/weight/"

Row = dict[str, str]


class RunRows(NamedTuple):
    """The rows of one run, table by table."""

    runs: Sequence[Row]
    curves: Sequence[Row] = ()
    pathways: Sequence[Row] = ()


def completed_keys(results: Path) -> set[Key]:
    """The keys of the rows in the results."""
    return set(_tuples(read_table(results / "runs.csv", RUN_COLUMNS), (*RUN_KEYS, "config")))


def append_results(rows: RunRows, results: Path, planned: Sequence[Job]) -> None:
    """Add a run to the results; rows of runs that are no longer planned are removed.

    Raises:
        NotWritten: If the system refuses; the run is added by the next call.
    """
    valid = {key for job in planned for key in job.keys}
    stale = {key[:-1] for key in completed_keys(results) if _owner(key) not in valid}
    outdated = stale | {tuple(row[column] for column in RUN_KEYS) for row in rows.runs}
    # By its row in runs.csv a run counts as completed, so that comes last.
    columns = {"curves": CURVE_COLUMNS, "pathways": PATHWAY_COLUMNS, "runs": RUN_COLUMNS}
    for name, known in columns.items():
        path = results / f"{name}.csv"
        _replace_rows(path, read_table(path, known), getattr(rows, name), outdated)
    write_atomically(results / "versions.json", json.dumps(collect_versions(), indent=2) + "\n")


def drop_outdated(results: Path, planned: Sequence[Job]) -> None:
    """Remove rows of runs that are no longer planned, where a run in place of one of them failed.

    Raises:
        NotWritten: If the system refuses.
    """
    if (results / "runs.csv").exists():
        append_results(RunRows([]), results, planned)


def _owner(key: Key) -> Key:
    """The key of the run that left a row: a source played untouched is one of several rows."""
    task, hub, method, *rest = key
    return (task, hub, ZERO_SHOT if method.startswith(f"{ZERO_SHOT}:") else method, *rest)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of the results as text; a missing file is empty, and so are missing columns."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns), dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False).reindex(
        columns=list(columns), fill_value=""
    )


def _tuples(table: pd.DataFrame, columns: Sequence[str]) -> list[Key]:
    return list(table[list(columns)].itertuples(index=False, name=None))


def _replace_rows(path: Path, old: pd.DataFrame, new: Sequence[Row], outdated: set[Key]) -> None:
    stays = np.array([key not in outdated for key in _tuples(old, RUN_KEYS)], dtype=bool)
    table = pd.concat(
        [old.loc[stays], pd.DataFrame(list(new), columns=list(old.columns), dtype=str)]
    )
    ordered = table.assign(order=table["seed"].astype(int)).sort_values(
        ["task", "hub", "method", "order"], kind="stable"
    )
    write_atomically(path, ordered.drop(columns="order").to_csv(index=False))


def run_row(job: Job, **values: Any) -> Row:
    """A row of `runs.csv`; values override those of the job itself."""
    known = {
        "task": job.task,
        "hub": job.hub,
        "method": job.label,
        "algorithm": job.config.algorithm,
        "seed": job.config.seed,
        "hubrl_version": __version__,
        "config": job.digest,
        **values,
    }
    return {column: _text(known.get(column)) for column in RUN_COLUMNS}


def _text(value: Any) -> str:
    return "" if value is None else _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """A return or a time, with two decimals and at least six digits: returns may be rates."""
    return f"{value:.2f}" if abs(value) >= 1e4 else f"{value:.6g}"


def trained_row(job: Job) -> Row:
    """The row of a finished training, from its `result.json` and Monitor files."""
    result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    early = [value for step, value in training_curve(job.folder) if step <= job.config.steps / 4]
    same = ("steps", "mean_train_return", "final_return", "eval_std", "probe_steps", "wall_s")
    return run_row(
        job,
        first_quarter_return=float(np.mean(early)) if early else None,
        eval_return=result["eval_mean"],
        probe_kept=" ".join(name for name, kept in (result["probe_kept"] or {}).items() if kept),
        **{column: result[column] for column in same},
    )


def curve_rows(job: Job) -> Iterator[Row]:
    """Evaluations of a training, and its episodes' returns as `CURVE_POINTS` means."""
    # A probe can leave too few steps for an evaluation.
    path = job.folder / "evaluations.npz"
    evaluated = (
        np.load(path, allow_pickle=False) if path.exists() else {"timesteps": [], "results": []}
    )
    for step, returns in zip(evaluated["timesteps"], evaluated["results"], strict=True):
        yield {
            **_keys(job),
            "kind": "evaluation",
            "step": str(int(step)),
            "return": _number(float(np.mean(returns))),
        }
    curve = training_curve(job.folder)
    width = job.config.steps / CURVE_POINTS
    for point in range(CURVE_POINTS):
        inside = [value for step, value in curve if point * width < step <= (point + 1) * width]
        if inside:
            step = str(round((point + 1) * width))
            yield {
                **_keys(job),
                "kind": "training",
                "step": step,
                "return": _number(float(np.mean(inside))),
            }


def pathway_rows(job: Job) -> Iterator[Row]:
    """Pathway weights of a training, from its TensorBoard events."""
    for pathway, weights in logged_weights(job.folder).items():
        points = sorted(weights.items())
        for step, weight in points[:: max(len(points) // CURVE_POINTS, 1)]:
            yield {
                **_keys(job),
                "step": str(step),
                "pathway": pathway,
                "weight": f"{weight:.4f}",
            }


def logged_weights(folder: Path) -> dict[str, dict[int, float]]:
    """Weight by step, pathway by pathway; what a resumed run logged twice counts once."""
    found: dict[str, dict[int, float]] = {}
    for events_folder in sorted(folder.glob("tensorboard*")):
        events = EventAccumulator(str(events_folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith(WEIGHT_TAG):
                weights = found.setdefault(tag.rpartition("/")[2], {})
                weights |= {scalar.step: scalar.value for scalar in events.Scalars(tag)}
    return found


def _keys(job: Job) -> Row:
    return dict(zip(RUN_KEYS, (job.task, job.hub, job.label, str(job.config.seed)), strict=True))
