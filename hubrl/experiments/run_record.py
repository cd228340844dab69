"""The files of a run beside its models: config, command, versions, learning curve, result."""

import csv
import hashlib
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

import hubrl
from hubrl.experiments.config import RunConfig, read_config
from hubrl.experiments.evaluation import Played
from hubrl.experiments.run_folder import first_step
from hubrl.formats.files import new_folder, write_atomically
from hubrl.formats.schema import write_yaml
from hubrl.hub import Hub
from hubrl.tasks.atari_game import FRAME_SKIP
from hubrl.training.callback import Decision
from hubrl.training.metrics import describe_arms
from hubrl.training.probe import ProbeResult

PACKAGES = (
    "hubrl",
    "stable-baselines3",
    "sb3-contrib",
    "torch",
    "gymnasium",
    "numpy",
    "ale-py",
    "mujoco",
)


class RunProgress(NamedTuple):
    """The state of a run beside its model, kept over interruptions."""

    wall_s: float = 0.0
    """Seconds of training so far, evaluations included."""
    probe_steps: int = 0
    probe_kept: dict[str, bool] | None = None
    decisions: Sequence[Sequence[Any]] = ()
    """Step and sentence of every decision about trust."""

    def after(
        self, probed: ProbeResult | None, decisions: Sequence[Decision], seconds: float
    ) -> "RunProgress":
        """The progress some seconds later, with the probe and the decisions made in them."""
        later = self._replace(
            wall_s=self.wall_s + seconds, decisions=[*self.decisions, *map(list, decisions)]
        )
        return (
            later
            if probed is None
            else later._replace(probe_steps=probed.steps, probe_kept=probed.kept)
        )


def write_run_folder(folder: Path, config: RunConfig, hub: Hub | None) -> None:
    """Make the folder of a new run with everything needed to repeat it.

    Raises:
        OutputExists: If the folder exists.
        NotWritten: If the system refuses.
    """
    resolved = config.model_copy(update={"hub": None if hub is None else "hub", "agents": ()})
    files = {
        # Defaults are written too: they may have changed when the run is repeated.
        "config.yaml": write_yaml(resolved.model_dump(mode="json", exclude_none=True)),
        "command.txt": shlex.join(sys.argv) + "\n",
        "versions.json": json.dumps(collect_versions(), indent=2) + "\n",
    }
    with new_folder(folder, what="The run") as unfinished:
        if hub is not None:
            hub.save(unfinished / "hub")
        for name, text in files.items():
            (unfinished / name).write_text(text, encoding="utf-8")


def write_result(
    folder: Path, config: RunConfig, model: BaseAlgorithm, played: Played, progress: RunProgress
) -> dict[str, Any]:
    """Write `trust.json`, and `result.json`, by which a run counts as finished; return the latter.

    `trust.json` holds the decisions about trust, and what every arm earned.
    """
    trust = {"decisions": progress.decisions, "arms": describe_arms(model.policy)}
    write_atomically(folder / "trust.json", json.dumps(trust, indent=2) + "\n")
    result = {
        "task": config.task,
        "method": config.method,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "steps": model.num_timesteps,
        "probe_steps": progress.probe_steps,
        "probe_kept": progress.probe_kept,
        "eval_mean": played.mean,
        "eval_std": played.std,
        "eval_episodes": config.eval_episodes,
        "train_returns_last_100": _mean([episode["r"] for episode in model.ep_info_buffer or ()]),
        **_curve_summary(folder, config.steps),
        "wall_s": round(progress.wall_s, 1),
        "steps_per_s": round(model.num_timesteps / progress.wall_s, 1),
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n", "The result")
    return result


def _curve_summary(folder: Path, steps: int) -> dict[str, float | None]:
    """Mean return over the training and over its last tenth."""
    curve = training_curve(folder)
    return {
        "mean_train_return": _mean([value for _, value in curve]),
        "final_return": _mean([value for step, value in curve if step > 0.9 * steps]),
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def collect_versions() -> dict[str, str | None]:
    """Versions of Python and important packages, and the git commit of the working directory."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {**found, "commit": commit.stdout.strip() or None}


def compared_versions() -> dict[str, str]:
    """Versions on which results depend: of Python, of packages, and of hubrl's own code."""
    found = {name: str(version) for name, version in collect_versions().items()}
    found.pop("commit")
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    code = hashlib.sha256()
    for path in sorted(Path(hubrl.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {**found, "hubrl's code": code.hexdigest()[:10]}


def version_difference(driver: dict[str, str]) -> str | None:
    """A sentence about the first version that is not the driver's on this node, if any."""
    node = compared_versions()
    for name in driver:
        if driver[name] != node.get(name):
            return (
                f"Node {platform.node()} has {name} {node.get(name)}, the driver {driver[name]}; "
                "install the same versions on every node."
            )
    return None


def training_curve(folder: Path) -> list[tuple[int, float]]:
    """The step at which every episode of a training ended, over all environments, and its return.

    Read from SB3's Monitor files, without the episodes that a checkpoint broke off. Under Atari
    preprocessing these count frames, of which a step has four; the no-ops and the FIRE at a game's
    start are among them, so that its end may be placed some steps late.
    """
    skip = FRAME_SKIP if read_config(folder / "config.yaml").preprocessing != "none" else 1
    started = {first_step(monitor): monitor for monitor in folder.glob("monitor*")}
    begins = sorted(started)
    curve = []
    for begin, end in zip(begins, [*begins[1:], math.inf], strict=True):
        files = sorted(started[begin].glob("*.monitor.csv"))
        for file in files:
            frames = 0
            for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()[1:]):
                frames += int(row["l"]) * len(files)
                # The next leg began before what is placed behind its begin could end.
                curve.append((int(min(begin + frames // skip, end)), float(row["r"])))
    return sorted(curve)
