"""Workloads to be timed: learning, playing and predicting, by hubrl and by plain SB3.

Sources are untrained networks of fixed seeds: their speed does not depend on training.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.ppo import PPO

from hubrl.experiments.build_model import build_model, sb3_policy
from hubrl.experiments.config import RunConfig, load_hub
from hubrl.experiments.run_envs import cached_env
from hubrl.export import export
from hubrl.hub import Hub
from hubrl.policies.cached import CachedVecEnv, Rows
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.reading import read_live
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.tasks.atari_vec_env import STACK
from hubrl.tasks.make_env import make_env
from hubrl.training.callback import HubCallback

SUBPROC = "atari-subproc"
"""SB3's wrappers in processes of their own; no `preprocessing` of a config."""

PREDICT_BATCH = 8
"""Observations of a call of `predict`."""


class Running(Protocol):
    """A workload that was set up."""

    def measure(self, steps: int) -> float:
        """Steps a second over at least this many steps; of memory, bytes."""

    def close(self) -> None:
        """Release everything it holds."""


@dataclass(frozen=True)
class Workload(ABC):
    """The declaration of a workload.

    Args:
        config: Fields of a run's config but `hub` and `steps`; without a method it is `scratch`.
        sources: Number of sources in its hub; 0 for plain SB3.
    """

    config: Mapping[str, Any]
    sources: int = 0

    @property
    def n_envs(self) -> int:
        """Parallel environments."""
        return int(self.config.get("n_envs", 1))

    @abstractmethod
    def start(self) -> Running:
        """Set it up, untimed."""


class Learner:
    """A model that learns, in timed steps."""

    def __init__(self, workload: Workload) -> None:
        config = RunConfig(**{"method": "scratch", "steps": 1, "device": "cpu", **workload.config})
        preprocessing = config.preprocessing
        self.env = make_env(
            config.task,
            config.task_kwargs,
            n_envs=config.n_envs,
            seed=0,
            preprocessing=preprocessing,
        )
        hub, env = None, self.env
        if workload.sources:
            with TemporaryDirectory() as folder:
                config = config.model_copy(update={"hub": Path(folder) / "hub"})
                untrained_hub(env, workload.sources).save(Path(folder) / "hub")
                hub = load_hub(config)
        if config.cached and hub is not None:
            env = cached_env(config, hub, env)
        self.model = build_model(config, env, hub)
        self.callback: Callable[[], BaseCallback | None] = lambda: (
            HubCallback(0.0, 0.0) if hub else None
        )

    def measure(self, steps: int) -> float:
        """Steps a second of `learn`."""
        before, start = self.model.num_timesteps, time.perf_counter()
        self.model.learn(steps, callback=self.callback(), reset_num_timesteps=False)
        return (self.model.num_timesteps - before) / (time.perf_counter() - start)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


@dataclass(frozen=True)
class Learning(Workload):
    """A training, its rollouts and its updates."""

    runner: ClassVar[type[Learner]] = Learner

    def start(self) -> Learner:
        """Environments, hub and model."""
        return self.runner(self)


class Copier(Learner):
    """A `warm-start` behind the decision: the first source's copy trains on."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        policy = self.model.policy
        assert isinstance(policy, HubActorCriticPolicy)
        assert policy.selection is not None
        policy.selection.get_buffer("screened").fill_(True)
        policy.selection.get_buffer("fates")[0] = int(Fate.KEPT)
        policy.selection.get_buffer("copied_source").fill_(0)
        policy.selection.trial.go(Phase.ALONE)
        policy.follow_selection()
        policy.copy_source(0)


@dataclass(frozen=True)
class Copying(Learning):
    """The training of a source's copy."""

    runner: ClassVar[type[Learner]] = Copier


@dataclass(frozen=True)
class Emulator(Workload):
    """The environments of a training alone, under random actions."""

    def start(self) -> "Player":
        """The environments."""
        task, preprocessing = self.config["task"], self.config.get("preprocessing", "none")
        if preprocessing != SUBPROC:
            kwargs = self.config.get("task_kwargs")
            return Player(
                make_env(task, kwargs, n_envs=self.n_envs, seed=0, preprocessing=preprocessing)
            )
        # A process of its own imports ale-py only if the task's name has the module.
        env = make_atari_env(
            f"ale_py:{task}", n_envs=self.n_envs, seed=0, vec_env_cls=SubprocVecEnv
        )
        return Player(VecFrameStack(env, STACK))


class Player:
    """Environments under random actions."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        env.action_space.seed(0)
        env.reset()

    def measure(self, steps: int) -> float:
        """Steps a second."""
        n_envs, sample = self.env.num_envs, self.env.action_space.sample
        rounds = max(steps // n_envs, 1)
        actions = [np.stack([sample() for _ in range(n_envs)]) for _ in range(rounds)]
        start = time.perf_counter()
        for chosen in actions:
            self.env.step(chosen)
        return rounds * n_envs / (time.perf_counter() - start)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


class Calculator(Learner):
    """PPO's networks, in as many calls as `learn` makes of them, on the data of one rollout."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        assert isinstance(self.model, PPO)
        self.ppo = self.model
        self.rollout = self.ppo.n_steps * self.ppo.n_envs
        self.ppo.learn(self.rollout, callback=self.callback())
        self.cached = find_cache(self.ppo)
        self.rows = None if self.cached is None else self.cached.venv.reset()
        self.batches = list(self.ppo.rollout_buffer.get(self.ppo.batch_size))

    def measure(self, steps: int) -> float:
        """Steps a second of the networks."""
        rounds = -(-steps // self.rollout)
        observations = obs_as_tensor(self.ppo._last_obs, self.ppo.device)  # type: ignore[arg-type]
        start = time.perf_counter()
        for _ in range(rounds):
            self.ppo.policy.set_training_mode(False)
            with torch.no_grad():
                for _ in range(self.ppo.n_steps):
                    if self.cached is not None:
                        self.cached.compute_features(cast("Rows", self.rows))
                    self.ppo.policy(observations)
            self.ppo.policy.set_training_mode(True)
            for batch in self.batches * self.ppo.n_epochs:
                self._learn_from(batch)
        return rounds * self.rollout / (time.perf_counter() - start)

    def _learn_from(self, batch: Any) -> None:
        actions = batch.actions.long().flatten() if batch.actions.shape[1] == 1 else batch.actions
        values, log_prob, entropy = self.ppo.policy.evaluate_actions(batch.observations, actions)
        ratio = torch.exp(log_prob - batch.old_log_prob)
        gain = torch.min(batch.advantages * ratio, batch.advantages * ratio.clamp(0.9, 1.1)).mean()
        assert entropy is not None
        loss = (values.flatten() - batch.returns).square().mean() - gain - 0.01 * entropy.mean()
        self.ppo.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.ppo.policy.parameters(), self.ppo.max_grad_norm)
        self.ppo.policy.optimizer.step()


@dataclass(frozen=True)
class Kernels(Learning):
    """PPO's networks alone: the computation of rollouts and updates on data in memory."""

    runner: ClassVar[type[Learner]] = Calculator


@dataclass(frozen=True)
class Predicting(Workload):
    """`predict` of a plain SB3 agent; with sources, of an exported lite Zoo-Tuning agent."""

    @property
    def n_envs(self) -> int:
        """Observations of a call."""
        return PREDICT_BATCH

    def start(self) -> "Predictor":
        """The agent."""
        learner = Learner(Learning({**self.config, "n_envs": 1}, self.sources))
        model = export(read_live(learner.model, "lite")).model if self.sources else learner.model
        learner.close()
        return Predictor(model)


@dataclass(frozen=True)
class Acting(Workload):
    """`predict` without a state: of a hub's agent over outputs after training, or plain SB3's."""

    batch: int = 1
    """Observations of a call."""

    @property
    def n_envs(self) -> int:
        """Observations of a call."""
        return self.batch

    def start(self) -> "Predictor":
        """The agent; if arms are judged, one source acts alone, else pathways act in turn."""
        learner = Learner(Learning({**self.config, "n_envs": 1}, self.sources))
        learner.close()
        policy = learner.model.policy
        if isinstance(policy, HubActorCriticPolicy):
            policy.enable_commitment()
            if policy.selection is not None:
                returns = [float(source) for source in range(self.sources)]
                policy.selection.judge([Fate.KEPT] * self.sources, returns)
            elif policy.method.router is not None:
                torch.manual_seed(0)
                torch.nn.init.normal_(policy.method.router.mean.weight)
        return Predictor(learner.model, self.batch)


class Predictor:
    """An agent that predicts.

    Args:
        model: The agent.
        batch: Observations of a call, a single one without a batch's axis.
    """

    def __init__(self, model: BaseAlgorithm, batch: int = PREDICT_BATCH) -> None:
        self.model, self.batch = model, batch
        model.observation_space.seed(0)
        rows = [model.observation_space.sample() for _ in range(batch)]
        self.observations = np.stack(rows) if batch > 1 else rows[0]

    def measure(self, steps: int) -> float:
        """Observations a second."""
        rounds = -(-steps // self.batch)
        start = time.perf_counter()
        for _ in range(rounds):
            self.model.predict(self.observations, deterministic=True)
        return rounds * self.batch / (time.perf_counter() - start)

    def close(self) -> None:
        """Nothing to release."""


def untrained_hub(env: VecEnv, count: int) -> Hub:
    """Untrained PPO agents, one seed each."""
    small: dict[str, Any] = {"n_steps": 2, "batch_size": 2 * env.num_envs, "device": "cpu"}
    agents = (PPO(sb3_policy(PPO, env), env, seed=seed, **small) for seed in range(count))
    return Hub(read_live(agent, f"untrained-{seed}") for seed, agent in enumerate(agents))


def find_cache(model: BaseAlgorithm) -> CachedVecEnv | None:
    """The CachedVecEnv of a model, if it has one."""
    env = model.get_env()
    while isinstance(env, VecEnvWrapper) and not isinstance(env, CachedVecEnv):
        env = env.venv
    return env if isinstance(env, CachedVecEnv) else None
