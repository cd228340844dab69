"""Evaluations of a training, at regular steps."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback, EveryNTimesteps
from stable_baselines3.common.vec_env import VecEnv

from hubrl.errors import BadFile
from hubrl.experiments.checkpoints import BROKEN
from hubrl.experiments.config import RunConfig
from hubrl.experiments.evaluation import isolated_rng, samples_actions

FILE = "evaluations.npz"


def regular_evaluations(
    config: RunConfig, folder: Path, env: VecEnv, first_step: int
) -> EveryNTimesteps:
    """Evaluations at multiples of their distance, whatever the steps of a probe or checkpoint.

    Args:
        config: The run's config.
        folder: Its folder, for `evaluations.npz`.
        env: Environments of the evaluations.
        first_step: The step at which the training begins; earlier evaluations are kept.

    Raises:
        BadFile: If the earlier evaluations cannot be read.
    """
    every = config.eval_every or max(config.steps // 10, 1)
    evaluations = FileEvalCallback(env, folder / FILE, config.eval_episodes)
    if first_step:
        evaluations.restore(first_step)
    timer = EveryNTimesteps(every, evaluations)
    timer.last_time_trigger = first_step // every * every
    return timer


class FileEvalCallback(EvalCallback):
    """SB3's EvalCallback, at every call, whose file is replaced in one step.

    Where actions are sampled, the training's random numbers go on afterwards as before.

    Args:
        env: Environments of the evaluations.
        path: The file of all evaluations.
        episodes: Episodes of each.
    """

    def __init__(self, env: VecEnv, path: Path, episodes: int) -> None:
        super().__init__(
            env,
            n_eval_episodes=episodes,
            eval_freq=1,
            log_path=str(path.parent),
            deterministic=not samples_actions(env),
            verbose=0,
        )
        self.path, self.unfinished = path, path.with_name(f".{path.name}")
        self.log_path = str(self.unfinished)

    def restore(self, first_step: int) -> None:
        """Take over the evaluations of an interrupted run, up to its checkpoint."""
        if not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as before:
                valid = before["timesteps"] <= first_step
                self.evaluations_timesteps = before["timesteps"][valid].tolist()
                self.evaluations_results = before["results"][valid].tolist()
                self.evaluations_length = before["ep_lengths"][valid].tolist()
        except BROKEN as error:
            raise BadFile(
                f"{self.path} is damaged ({error}); remove it to go on without the evaluations so "
                "far."
            ) from error

    def _on_step(self) -> bool:
        step: Any = self.num_timesteps
        isolated = (
            nullcontext() if self.deterministic else isolated_rng(self.model.action_space, step)
        )
        with isolated:
            goes_on = super()._on_step()
        self.unfinished.replace(self.path)
        return goes_on
