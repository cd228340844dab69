"""Everything that the folder of a finished run records of its training, as plain data."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hubrl.errors import BadFile
from hubrl.experiments.run_folder import Run
from hubrl.experiments.run_record import training_curve
from hubrl.reports.run_files import (
    DAMAGED,
    Levels,
    Result,
    Trust,
    Versions,
    read_json,
    reading,
)
from hubrl.routing.pathways import FRESH
from hubrl.selection.arm_evidence import TOGETHER_ARM

LEVELS = "sources.json"
"""Returns of the sources untouched, played for a report."""


class Series(NamedTuple):
    """A scalar over the training."""

    steps: list[int]
    values: list[float]


class Arm(NamedTuple):
    """An arm at the end of the training."""

    name: str
    verdict: str | None
    """Of a source: dropped, deferred, in doubt, set aside or kept."""
    returns: list[float]
    """Whole episodes on record."""
    evaluates: bool
    """Whether it acts in evaluation."""

    @property
    def mean(self) -> float:
        """Mean return; NaN without episodes."""
        return float(np.mean(self.returns)) if self.returns else float("nan")


class RunLog(Run):
    """The folder of a finished run, read for a report.

    Raises:
        BadFile: If the folder is no run, the run is not finished, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        found = read_json(folder / "result.json", Result | None, None)
        if found is None:
            raise BadFile(f"{folder} is not finished; finish it with `hubrl train {folder}`.")
        self.result: Result = found

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of the hub."""
        return [] if self.hub is None else list(self.hub.names)

    @property
    def title(self) -> str:
        """The run's name."""
        return self.folder.resolve().name

    @property
    def task(self) -> str:
        """The task with its keyword arguments."""
        kwargs = ", ".join(f"{name}={value}" for name, value in self.config.task_kwargs.items())
        return self.config.task.rpartition(":")[2] + (f" ({kwargs})" if kwargs else "")

    @cached_property
    def versions(self) -> Versions:
        """Versions of Python and packages, and the commit."""
        nothing: Versions = {}
        return read_json(self.folder / "versions.json", Versions, nothing)

    @property
    def command(self) -> str:
        """The command line that made the run."""
        path = self.folder / "command.txt"
        with reading(path):
            return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    @cached_property
    def _trust(self) -> Trust:
        path = self.folder / "trust.json"
        found = read_json(path, Trust, Trust())
        for name in found.arms:
            if name not in {*self.sources, TOGETHER_ARM, FRESH}:
                raise BadFile(DAMAGED.format(path, f"{name[:100]!r} is no arm of this run"))
        return found

    @property
    def decisions(self) -> list[tuple[int, str]]:
        """Step and sentence of every decision about trust."""
        return self._trust.decisions

    @cached_property
    def arms(self) -> list[Arm]:
        """Arms with a record or a verdict; none without selection among arms."""
        arms = [
            Arm(name, one.verdict, one.returns, one.evaluates)
            for name, one in self._trust.arms.items()
        ]
        return [arm for arm in arms if arm.returns or arm.verdict or arm.evaluates]

    @cached_property
    def levels(self) -> Levels:
        """Returns of each source untouched on the task: of the training, or played for a report."""
        nothing: Levels = {}
        played = read_json(self.folder / LEVELS, Levels, nothing)
        of_training = {
            arm.name: arm.returns for arm in self.arms if arm.name in self.sources and arm.returns
        }
        fixed = {} if self.config.tuned else of_training
        return {name: played.get(name) or fixed.get(name) or [] for name in self.sources}

    @property
    def best_source(self) -> str | None:
        """The source with the greatest mean return untouched; None where none is known."""
        known = [name for name, returns in self.levels.items() if returns]
        return max(known, key=lambda name: float(np.mean(self.levels[name])), default=None)

    @cached_property
    def evaluations(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps `(evaluations,)` and returns `(evaluations, episodes)`."""
        path = self.folder / "evaluations.npz"
        if not path.exists():
            return np.zeros(0, dtype=int), np.zeros((0, 1))
        with reading(path), np.load(path, allow_pickle=False) as saved:
            steps, returns = saved["timesteps"], saved["results"]
            if steps.ndim != 1 or returns.ndim != 2 or len(steps) != len(returns):
                raise ValueError(f"it holds {steps.shape} steps and {returns.shape} returns")
            return steps.astype(int), returns.astype(float)

    @cached_property
    def training_curve(self) -> list[tuple[int, float]]:
        """Step at which every episode of the training ended, and its return."""
        with reading(self.folder / "monitor"):
            return training_curve(self.folder)

    @cached_property
    def scalars(self) -> dict[str, Series]:
        """Every scalar of the training by tag, from TensorBoard's events.

        Steps that a resumed training repeated are those of the later events.
        """
        with reading(self.folder / "tensorboard_1"):
            return read_scalars(self.folder)

    def by_name(self, prefix: str) -> dict[str, Series]:
        """Scalars under a prefix, by the name behind it: sources in order, then the others."""
        found = {
            tag.removeprefix(prefix): series
            for tag, series in self.scalars.items()
            if tag.startswith(prefix)
        }
        first = [name for name in self.sources if name in found]
        return {name: found[name] for name in [*first, *(set(found) - set(first))]}

    @cached_property
    def acted(self) -> dict[str, Series]:
        """Share of the steps in which each pathway acted; empty where no single one acts."""
        return self.by_name("pathway/acted/")

    def shares_acted(self, begin: float = 0.0) -> dict[str, float]:
        """Mean share of each pathway from some part of the training on.

        Args:
            begin: Share of the training after which it begins.
        """
        first = begin * self.config.steps
        return {
            name: float(
                np.mean(
                    [
                        value
                        for step, value in zip(series.steps, series.values, strict=True)
                        if step > first
                    ]
                    or series.values[-1:]
                )
            )
            for name, series in self.acted.items()
        }


def read_scalars(folder: Path) -> dict[str, Series]:
    """Every scalar under a run's `tensorboard*` folders, by tag."""
    read = []
    for events in sorted(folder.glob("tensorboard_*")):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
        accumulator.Reload()
        read.append({tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]})
    read = [tags for tags in read if tags]
    begins = [min(one[0].step for one in tags.values()) for tags in read]
    ends = [*begins[1:], float("inf")]
    merged: dict[str, Series] = {}
    for tags, end in zip(read, ends, strict=True):
        for tag, scalars in tags.items():
            series = merged.setdefault(tag, Series([], []))
            for scalar in scalars:
                if scalar.step < end:
                    series.steps.append(scalar.step)
                    series.values.append(scalar.value)
    return merged


def decimals(value: float) -> int:
    """Decimals that leave three digits of a value; at most two, for values below one too."""
    return int(np.clip(2 - np.floor(np.log10(max(abs(value), 1.0))), 0, 2))


def with_spread(mean: float, std: float) -> str:
    """A mean and a standard deviation, with the decimals of the mean."""
    digits = decimals(mean)
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def in_words(name: str) -> str:
    """An arm's name in a sentence."""
    return "all pathways together" if name == TOGETHER_ARM else name


def aligned(series: Mapping[str, Series]) -> tuple[list[int], dict[str, list[float]]]:
    """Several scalars on the steps of all of them; zero where one was not recorded."""
    steps = sorted({step for one in series.values() for step in one.steps})
    by_step = {name: dict(zip(one.steps, one.values, strict=True)) for name, one in series.items()}
    return steps, {
        name: [known.get(step, 0.0) for step in steps] for name, known in by_step.items()
    }


def binned(curve: Sequence[tuple[int, float]], bins: int, steps: int) -> Series:
    """Mean returns of a training curve in equal parts of the training."""
    width = steps / bins
    found: dict[int, list[float]] = {}
    for step, value in curve:
        found.setdefault(min(int(step / width), bins - 1), []).append(value)
    parts = sorted(found)
    return Series(
        [round((part + 1) * width) for part in parts],
        [float(np.mean(found[part])) for part in parts],
    )
