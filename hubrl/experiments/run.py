"""A training and its folder: everything needed to repeat, watch, resume and evaluate it.

runs/<name>_<k>/
    config.yaml         resolved; `hubrl train <run>/config.yaml` repeats the run
    hub/                its sources
    command.txt         the command line
    versions.json       of Python and packages, and the git commit of the working directory
    tensorboard/        TensorBoard's events
    monitor/            SB3's Monitor, one CSV an environment
    evaluations.npz     as SB3's EvalCallback writes it
    checkpoints/        the last two, until the run is finished
    model.zip           the agent, and vecnormalize.pkl beside it
    trust.json          decisions about trust, and what every arm earned
    result.json         returns and times; a run with this file is finished
"""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from hubrl.errors import BadConfig, BadFile, OutputExists
from hubrl.experiments.build_model import build_model, check_device
from hubrl.experiments.checkpoints import (
    CheckpointFolder,
    checkpoints_in,
    model_bytes,
    read_progress,
    restore_checkpoint,
)
from hubrl.experiments.config import RunConfig, load_hub, read_config
from hubrl.experiments.evaluation import isolated_rng, play, samples_actions
from hubrl.experiments.run_envs import evaluation_env, training_env
from hubrl.experiments.run_record import RunProgress, write_result, write_run_folder
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.files import write_atomically
from hubrl.hub import Hub
from hubrl.training.callback import HubCallback

STATISTICS = "vecnormalize.pkl"


class Run:
    """The folder of a run, with its config and its hub read once.

    Raises:
        BadFile: If the folder is no run, or its config cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.yaml").exists():
            raise BadFile(f"{folder} is no run: it has no config.yaml.")
        self.folder = folder
        self.config = read_config(folder / "config.yaml")

    @cached_property
    def hub(self) -> Hub | None:
        """The sources of the run; None without a hub."""
        return load_hub(self.config)

    @property
    def tenth(self) -> int:
        """A tenth of the steps, the default distance of evaluations and checkpoints."""
        return max(self.config.steps // 10, 1)


def start_run(
    config_path: Path, overrides: Sequence[str], folder: Path, name: str | None = None
) -> Path:
    """Make the folder of a new run from a config; nothing is trained yet.

    Args:
        config_path: The YAML file.
        overrides: `field=value` over the file's fields.
        folder: Folder of all runs.
        name: The run's name; the config's with a number by default.

    Raises:
        BadConfig: If the config or the name is invalid.
        BadFile: If the config, its hub or an agent cannot be read.
        OutputExists: If a run of the name exists.
    """
    if name is not None and Path(name).name != name:
        raise BadConfig(
            f"Run name {name!r} was given; expected a bare name, with its folder given by --runs."
        )
    config = read_config(config_path, list(overrides))
    repeats = config_path.stem == "config"
    stem = config_path.resolve().parent.name.rsplit("_", 1)[0] if repeats else config_path.stem
    run = folder / (name or _numbered(folder, stem))
    start_run_from(config, run)
    return run


def start_run_from(config: RunConfig, folder: Path) -> None:
    """Make the folder of a new run; nothing is trained yet.

    Raises:
        BadFile: If its hub or an agent cannot be read.
        OutputExists: If the folder exists.
    """
    write_run_folder(folder, config, load_hub(config))


def _numbered(folder: Path, stem: str) -> str:
    numbers = [path.name.rsplit("_", 1)[1] for path in folder.glob(f"{stem}_*")]
    return f"{stem}_{max((int(number) for number in numbers if number.isdigit()), default=0) + 1}"


def train(
    folder: Path, callbacks: Sequence[BaseCallback] = (), *, verbose: int = 0
) -> dict[str, Any]:
    """Train a run, from its last checkpoint if it was interrupted.

    Args:
        folder: The run's folder.
        callbacks: Callbacks beside the run's own.
        verbose: 1 for SB3's table.

    Returns:
        The content of `result.json`.

    Raises:
        OutputExists: If the run is finished.
        BadConfig: If the task or the algorithm cannot be built.
        BadFile: If the folder is no run.
    """
    if (folder / "result.json").exists():
        again = (
            f"`hubrl train {folder / 'config.yaml'}` repeats it, `hubrl evaluate {folder}` plays it"
        )
        raise OutputExists(f"{folder} is finished; {again}.")
    run = Run(folder)
    check_device(run.config.device)
    torch.set_num_threads(run.config.threads)
    set_random_seed(run.config.seed)
    saved = checkpoints_in(folder / "checkpoints")
    # Monitor overwrites existing files: a resumed run has another folder for them.
    monitor = folder / (f"monitor-from-{saved[-1].name}" if saved else "monitor")
    with (
        closing(training_env(run.config, run.hub, monitor)) as env,
        closing(_callback_env(run)) as callback_env,
    ):
        model = build_model(run.config, env, run.hub, tensorboard=folder, verbose=verbose)
        if saved:
            restore_checkpoint(model, saved[-1])
        before = RunProgress(**(read_progress(saved[-1]) if saved else {}))
        started, first_step = time.perf_counter(), model.num_timesteps
        hub_callback = HubCallback(run.config.probe_share, run.config.warmup_share, verbose=1)

        def progress() -> RunProgress:
            return before.after(
                hub_callback.probe_result, hub_callback.decisions, time.perf_counter() - started
            )

        every = run.config.checkpoint_every or run.tenth
        own = [
            hub_callback,
            _evaluations(run, callback_env, first_step),
            CheckpointFolder(folder / "checkpoints", every, lambda: progress()._asdict()),
        ]
        steps = run.config.steps - first_step
        model.learn(
            steps, [*callbacks, *own], reset_num_timesteps=not saved, tb_log_name="tensorboard"
        )
        return _finish(run, model, progress())


def _finish(run: Run, model: BaseAlgorithm, progress: RunProgress) -> dict[str, Any]:
    """Save the agent, evaluate it, and write the result last."""
    write_atomically(run.folder / "model.zip", model_bytes(model))
    vec = model.get_vec_normalize_env()
    if vec is not None:
        vec.save(str(run.folder / STATISTICS))
    with closing(evaluation_env(run.config, run.hub)) as env:
        played = play(NormalizedAgent(model, vec), env, run.config.eval_episodes)
    return write_result(run.folder, run.config, model, played, progress)


class NormalizedAgent:
    """A model with its VecNormalize, which plays in environments without one.

    Args:
        model: The model.
        vec: Its VecNormalize, if it has one.
    """

    def __init__(self, model: BaseAlgorithm, vec: VecNormalize | None) -> None:
        self.model, self.vec = model, vec

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict` on observations that are not normalized."""
        seen = observation if self.vec is None else self.vec.normalize_obs(observation)
        return self.model.predict(seen, state, episode_start, deterministic)


def _callback_env(run: Run) -> VecEnv:
    """Environments of evaluations in training; SB3 copies the training's statistics into them."""
    env = evaluation_env(run.config, run.hub)
    if not run.config.normalize:
        return env
    return VecNormalize(
        env, training=False, norm_reward=False, **vecnormalize_kwargs(env.observation_space)
    )


def _evaluations(run: Run, env: VecEnv, first_step: int) -> EveryNTimesteps:
    """Evaluations at multiples of their distance, whatever the steps of a probe or checkpoint."""
    every = run.config.eval_every or run.tenth
    deterministic = not samples_actions(env)
    evaluations = (EvalCallback if deterministic else SampledEvalCallback)(
        env,
        n_eval_episodes=run.config.eval_episodes,
        eval_freq=1,
        log_path=str(run.folder),
        deterministic=deterministic,
        verbose=0,
    )
    _restore_evaluations(evaluations, run.folder / "evaluations.npz", first_step)
    timer = EveryNTimesteps(every, evaluations)
    timer.last_time_trigger = first_step // every * every
    return timer


class SampledEvalCallback(EvalCallback):
    """Evaluations with sampled actions that leave the training's random numbers as they were."""

    def _on_step(self) -> bool:
        with isolated_rng(self.model.action_space, self.num_timesteps):
            return super()._on_step()


def _restore_evaluations(evaluations: EvalCallback, path: Path, first_step: int) -> None:
    """Put the evaluations of an interrupted run, up to its checkpoint, before those to come."""
    if path.exists():
        before = np.load(path, allow_pickle=False)
        valid = before["timesteps"] <= first_step
        evaluations.evaluations_timesteps = before["timesteps"][valid].tolist()
        evaluations.evaluations_results = before["results"][valid].tolist()
        evaluations.evaluations_length = before["ep_lengths"][valid].tolist()
