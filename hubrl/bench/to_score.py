"""Wall-clock time to a return: seconds until a method earns in training what scratch ends with."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.monitor import load_results

from hubrl.errors import BadConfig
from hubrl.experiments.comparison import write_comparison
from hubrl.experiments.config import load_hub, read_config
from hubrl.experiments.study_plan import plan

EPISODES = 8
"""Latest episodes whose mean return must reach the score."""

SCRATCH = "scratch"


class TimeToScore(NamedTuple):
    """Seconds of one method."""

    method: str
    seconds: list[float]
    """One number a seed, from the first step of the training; infinite where it never got there."""

    def cells(self, scratch: "TimeToScore") -> tuple[str, ...]:
        """Method, mean seconds, least and greatest, and the share of scratch's time."""
        mean, own = float(np.mean(self.seconds)), sorted(self.seconds)
        if math.isinf(mean):
            reached = sum(math.isfinite(value) for value in own)
            return self.method, f"never in {len(own) - reached} of {len(own)}", "", ""
        # Where one seed of scratch ends below the mean of all it has no time to compare with.
        slowest = float(np.mean(scratch.seconds))
        share = "" if math.isinf(slowest) else f"{mean / slowest:.2f}"
        return self.method, f"{mean:.0f}", f"{own[0]:.0f} to {own[-1]:.0f}", share


def rivals(config: Path) -> list[str]:
    """Scratch, fine-tuning of each source, the best source of a probe, and the hub."""
    hub = load_hub(read_config(config, ["method=hub-pathway"]))
    if hub is None:
        raise BadConfig(f"{config} names no hub and no agents; there is nothing to compare.")
    return [SCRATCH, *(f"finetune:{name}" for name in hub.names), "probe-commit", "hub-pathway"]


def time_to_score(
    config: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    run: Callable[..., Sequence[Any]],
) -> tuple[float, list[TimeToScore]]:
    """Train each method, one run after another, and say when it earned what scratch ends with.

    Args:
        config: A run's config.
        methods: As of `write_comparison`; scratch is always among them.
        seeds: Seeds of every method.
        folder: Folder of runs and results.
        run: `run_study`, perhaps with a progress bar.

    Returns:
        The score, scratch's mean return in the last tenth of its training, and each method's time.

    Raises:
        BadConfig: If a run failed.
    """
    chosen = list(dict.fromkeys([SCRATCH, *methods]))
    # Nothing is evaluated in between, so that training alone is timed.
    steps = read_config(config, []).steps
    quiet = [f"eval_every={steps}", "eval_episodes=1"]
    study = write_comparison(config, chosen, seeds, folder / "results", quiet)
    failed = run(study, folder=folder / "runs", results=folder / "results", jobs=1)
    if failed:
        raise BadConfig(f"{len(failed)} of the runs failed; see {folder / 'runs'}.")
    jobs = plan(study, folder / "runs")
    runs = {method: [job.folder for job in jobs if job.method == method] for method in chosen}
    score = float(np.mean([_final_return(one) for one in runs[SCRATCH]]))
    return score, [
        TimeToScore(method, [seconds_until(one, score) for one in runs[method]])
        for method in chosen
    ]


def seconds_until(run: Path, score: float) -> float:
    """Seconds until the mean return of a run's latest episodes reached a score; infinite if never.

    Args:
        run: The run's folder, with Monitor's files.
        score: The return to reach.
    """
    episodes = load_results(str(run / "monitor"))
    means = episodes["r"].rolling(EPISODES).mean().to_numpy()
    reached = np.flatnonzero(means >= score)
    return float(episodes["t"].iloc[reached[0]]) if len(reached) else math.inf


def _final_return(run: Path) -> float:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return float(result["final_return"])
