"""A leg of a training: from one checkpoint, or the start, to the next, or the end.

Every leg begins with new environments, a new model in the checkpoint's state and a seed that
follows from the step. So a run that was killed and goes on is what it would have been.
"""

import pickle
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from hubrl.errors import BadFile
from hubrl.experiments.build_model import build_model
from hubrl.experiments.checkpoints import (
    DAMAGED,
    CheckpointFolder,
    LegEnded,
    checkpoints_in,
    keep_latest,
    model_bytes,
    read_progress,
    restore_checkpoint,
    save_checkpoint,
    truncate_episodes,
)
from hubrl.experiments.evaluation import play
from hubrl.experiments.regular_evaluations import regular_evaluations
from hubrl.experiments.run_envs import evaluation_env, training_env
from hubrl.experiments.run_folder import MODEL, STATISTICS, Run
from hubrl.experiments.run_record import RunProgress, write_result
from hubrl.experiments.seeds import EVALUATION_SEED
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.files import write_atomically
from hubrl.training.callback import HubCallback

CHECKPOINT_EPISODES = 20
"""Least whole episodes of an environment between two checkpoints, so that those which a checkpoint
breaks off are few."""


class Handed(NamedTuple):
    """What a leg hands to the next in the same process; a resumed run makes it anew."""

    logger: Logger | None = None
    replay_buffer: Any = None


class Leg:
    """A training from one checkpoint, or from the start, to the next, or to the end.

    Args:
        run: The run.
        handed: What the leg before handed over.
    """

    def __init__(self, run: Run, handed: Handed) -> None:
        saved = checkpoints_in(run.folder / "checkpoints")
        self.run, self.handed = run, handed
        self.checkpoint = saved[-1] if saved else None
        self.first_step = int(saved[-1].name) if saved else 0
        self.seed = leg_seed(run.config.seed, self.first_step)
        known = read_progress(saved[-1]) if saved else {}
        self.callback_state = known.pop("callback", None)
        self.ended_at = known.pop("ended_at", None)
        try:
            self.before = RunProgress(**known)
        except TypeError as error:
            raise BadFile(DAMAGED.format(self.checkpoint, error)) from error
        self.started = time.perf_counter()

    def train(self, callbacks: Sequence[BaseCallback], verbose: int) -> dict[str, Any] | None:
        """The result of the run; none where a checkpoint ended the leg, as the last one does."""
        run, config = self.run, self.run.config
        set_random_seed(self.seed)
        with (
            closing(training_env(config, run.hub, self._monitor, self.seed)) as env,
            closing(self._callback_env()) as callback_env,
        ):
            self.model = self._model(env, verbose)
            self.hub_callback = HubCallback(config.probe_share, config.warmup_share, verbose=1)
            if self.callback_state is not None:
                self.hub_callback.load_state_dict(self.callback_state)
            evaluations = regular_evaluations(config, run.folder, callback_env, self.first_step)
            # Checkpoints first: what others do at the start of a rollout belongs to the next leg.
            own = [self._checkpoints(), *callbacks, self.hub_callback, evaluations]
            if self._has_ended:
                return _finish(run, self.model, self._progress())
            with suppress(LegEnded):
                self._learn(own)
            return None

    @property
    def _has_ended(self) -> bool:
        """Whether only the result is to be written; that too is the same if it was interrupted."""
        steps = self.run.config.steps
        return self.first_step >= steps or self.ended_at == steps  # a callback may end it early

    @property
    def _monitor(self) -> Path | None:
        """Folder for Monitor's files."""
        if self._has_ended:
            return None
        name = "monitor" if self.checkpoint is None else f"monitor-from-{self.first_step}"
        return self.run.folder / name

    def _learn(self, callbacks: list[BaseCallback]) -> None:
        """Train to the end, and write a checkpoint there, from which more steps can go on."""
        self.model.learn(
            self.run.config.steps - self.first_step,
            callbacks,
            reset_num_timesteps=self.checkpoint is None,
            tb_log_name="tensorboard",
        )
        truncate_episodes(self.model)
        folder = self.run.folder / "checkpoints"
        state = {**self._state(), "ended_at": self.run.config.steps}
        save_checkpoint(self.model, folder / str(self.model.num_timesteps), state)
        keep_latest(folder)

    def hand_over(self) -> Handed:
        """What the next leg takes over; the model is of no use any more.

        It is cyclic, and would keep its buffers until Python happens to look for cycles.
        """
        vars(self.model).pop("rollout_buffer", None)
        return Handed(self.model.logger, vars(self.model).pop("replay_buffer", None))

    def _model(self, env: VecEnv, verbose: int) -> BaseAlgorithm:
        config = self.run.config
        model = build_model(
            config,
            env,
            self.run.hub,
            tensorboard=self.run.folder,
            verbose=verbose,
            seed=self.seed,
        )
        if self.checkpoint is not None:
            restore_checkpoint(model, self.checkpoint, self.handed.replay_buffer)
            model.set_random_seed(self.seed)
            model.seed = config.seed
        if self.handed.logger is not None:
            model.set_logger(self.handed.logger)
        return model

    def _callback_env(self) -> VecEnv:
        """Environments of evaluations; SB3 copies the training's statistics into them."""
        config = self.run.config
        seed = leg_seed(config.seed + EVALUATION_SEED, self.first_step)
        env = evaluation_env(config, self.run.hub, seed=seed)
        if not config.normalize:
            return env
        return VecNormalize(
            env, training=False, norm_reward=False, **vecnormalize_kwargs(env.observation_space)
        )

    def _checkpoints(self) -> CheckpointFolder:
        every = self.run.config.checkpoint_every
        return CheckpointFolder(
            self.run.folder / "checkpoints",
            every or self.run.tenth,
            0 if every else CHECKPOINT_EPISODES,
            self._state,
        )

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model."""
        return {**self._progress()._asdict(), "callback": self.hub_callback.state_dict()}

    def _progress(self) -> RunProgress:
        seconds = time.perf_counter() - self.started
        callback = self.hub_callback
        return self.before.after(callback.probe_result, callback.decisions, seconds)


def leg_seed(seed: int, first_step: int) -> int:
    """The seed of a leg: the run's own for the first, and another for every later one."""
    if first_step == 0:
        return seed
    return int(np.random.SeedSequence([seed, first_step]).generate_state(1)[0]) & 0x7FFFFFFF


def _finish(run: Run, model: BaseAlgorithm, progress: RunProgress) -> dict[str, Any]:
    """Save the agent, evaluate it, and write the result last."""
    write_atomically(run.folder / MODEL, model_bytes(model), "The agent")
    vec = model.get_vec_normalize_env()
    if vec is not None:
        write_atomically(run.folder / STATISTICS, pickle.dumps(vec), "VecNormalize's statistics")
    # The same episodes where the training was killed after its end.
    set_random_seed(run.config.seed + EVALUATION_SEED)
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
