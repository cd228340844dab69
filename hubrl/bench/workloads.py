"""Work to be timed: learning, playing and predicting, as hubrl does it and as plain SB3 does it.

Sources are untrained networks of given seeds: how fast they are does not depend on what they learned.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO
from torch import Tensor

from hubrl.cached import CachedVecEnv
from hubrl.callbacks import HubCallback
from hubrl.experiments import run as runs
from hubrl.experiments.config import RunConfig
from hubrl.export.plain_model import export
from hubrl.hub import Hub
from hubrl.reading import read_live
from hubrl.tasks.atari_vec_env import STACK
from hubrl.tasks.make_env import make_env

SUBPROC = "atari-subproc"
"""SB3's wrappers in processes of their own; not among `preprocessing` of a config."""

PREDICTED = 8
"""Observations of a call of `predict`."""


class Running(Protocol):
    """Work that was set up."""

    def measure(self, steps: int) -> float:
        """Steps a second over at least so many steps; for memory, bytes."""

    def close(self) -> None:
        """Let go of what it holds."""


class Work(Protocol):
    """Work as a line of the bench declares it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Fields of a run's config, the task among them."""

    @property
    def n_envs(self) -> int:
        """Parallel environments."""

    def start(self) -> Running:
        """Set it up, untimed."""


@dataclass(frozen=True)
class Learning:
    """A training, its rollouts and its updates.

    Args:
        config: Fields of a run's config but `hub` and `steps`; plain SB3's is of method `scratch`.
        sources: How many sources its hub has.
    """

    config: Mapping[str, Any]
    sources: int = 0

    @property
    def n_envs(self) -> int:
        """Parallel environments."""
        return int(self.config.get("n_envs", 1))

    def start(self) -> "Learner":
        """Environments, hub and model."""
        return Learner(self.config, self.sources)


class Learner:
    """A model that learns, in steps that are timed."""

    def __init__(self, fields: Mapping[str, Any], sources: int) -> None:
        config = RunConfig(**{"method": "scratch", "steps": 1, "device": "cpu", **fields})
        self.env = make_env(config.task, config.task_kwargs, n_envs=config.n_envs, seed=0, preprocessing=config.preprocessing)
        with TemporaryDirectory() as folder:
            hub = None
            if sources:
                config = config.model_copy(update={"hub": Path(folder) / "hub"})
                untrained_hub(self.env, sources).save(Path(folder) / "hub")
                hub = runs.hub_of(config)
            env = runs.cached_env(config, self.env) if config.cached else self.env
            self.model = runs.build_model(config, env, hub)
        self.callback: Callable[[], BaseCallback | None] = (lambda: HubCallback(0.0, 0.0)) if sources else lambda: None

    def measure(self, steps: int) -> float:
        """Steps a second of `learn`."""
        before, began = self.model.num_timesteps, time.perf_counter()
        self.model.learn(steps, callback=self.callback(), reset_num_timesteps=False)
        return (self.model.num_timesteps - before) / (time.perf_counter() - began)

    def close(self) -> None:
        """End the environments."""
        self.env.close()


@dataclass(frozen=True)
class Emulator:
    """The environments of a training alone, under random actions."""

    config: Mapping[str, Any]

    @property
    def n_envs(self) -> int:
        """Parallel environments."""
        return int(self.config.get("n_envs", 1))

    def start(self) -> "Player":
        """The environments."""
        return Player(self._made())

    def _made(self) -> VecEnv:
        task, preprocessing = self.config["task"], self.config.get("preprocessing", "none")
        if preprocessing != SUBPROC:
            return make_env(task, self.config.get("task_kwargs"), n_envs=self.n_envs, seed=0, preprocessing=preprocessing)
        # A process of its own imports ale-py only where the task's name says so.
        return VecFrameStack(make_atari_env(f"ale_py:{task}", n_envs=self.n_envs, seed=0, vec_env_cls=SubprocVecEnv), STACK)


class Player:
    """Environments that are stepped."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        env.action_space.seed(0)
        env.reset()

    def measure(self, steps: int) -> float:
        """Steps a second."""
        rounds = max(steps // self.env.num_envs, 1)
        actions = [np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)]) for _ in range(rounds)]
        began = time.perf_counter()
        for chosen in actions:
            self.env.step(chosen)
        return rounds * self.env.num_envs / (time.perf_counter() - began)

    def close(self) -> None:
        """End the environments."""
        self.env.close()


@dataclass(frozen=True)
class Kernels(Learning):
    """The networks of a training alone, PPO's: what it computes in a rollout and its update, on data that lie ready."""

    def start(self) -> "Calculator":
        """Environments, hub and model, and one rollout for data."""
        return Calculator(self.config, self.sources)


class Calculator(Learner):
    """A model whose networks compute, in as many calls as `learn` makes of them."""

    def __init__(self, fields: Mapping[str, Any], sources: int) -> None:
        super().__init__(fields, sources)
        assert isinstance(self.model, PPO)
        self.ppo = self.model
        self.rollout = self.ppo.n_steps * self.ppo.n_envs
        self.ppo.learn(self.rollout, callback=self.callback())
        self.cached = cache_of(self.ppo)
        self.rows = None if self.cached is None else self.cached.venv.reset()
        self.batches = list(self.ppo.rollout_buffer.get(self.ppo.batch_size))

    def measure(self, steps: int) -> float:
        """Steps a second of the networks."""
        rounds = -(-steps // self.rollout)
        observations = obs_as_tensor(self.ppo._last_obs, self.ppo.device)  # type: ignore[arg-type]
        began = time.perf_counter()
        for _ in range(rounds):
            self.ppo.policy.set_training_mode(False)
            with torch.no_grad():
                for _ in range(self.ppo.n_steps):
                    if self.cached is not None:
                        self.cached._hear(self.rows)  # type: ignore[arg-type]
                    self.ppo.policy(observations)
            self.ppo.policy.set_training_mode(True)
            for batch in self.batches * self.ppo.n_epochs:
                self._learn_from(batch)
        return rounds * self.rollout / (time.perf_counter() - began)

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
class Predicting:
    """What is deployed: `predict` of a plain SB3 agent on a few observations.

    Args:
        config: As of `Learning`; with sources the agent is what `hubrl export` makes of a lite Zoo-Tuning agent.
        sources: How many sources its hub has; none for SB3's own.
    """

    config: Mapping[str, Any]
    sources: int = 0
    n_envs: int = PREDICTED

    def start(self) -> "Predictor":
        """The agent."""
        learner = Learner({**self.config, "n_envs": 1}, self.sources)
        model = export(read_live(learner.model, "lite")).model if self.sources else learner.model
        learner.close()
        return Predictor(model)


class Predictor:
    """An agent that predicts."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model
        model.observation_space.seed(0)
        self.observations = np.stack([model.observation_space.sample() for _ in range(PREDICTED)])

    def measure(self, steps: int) -> float:
        """Observations a second."""
        rounds = -(-steps // PREDICTED)
        began = time.perf_counter()
        for _ in range(rounds):
            self.model.predict(self.observations, deterministic=True)
        return rounds * PREDICTED / (time.perf_counter() - began)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Replay(Learning):
    """What a replay buffer holds of a step."""

    def start(self) -> "Memory":
        """The buffer."""
        return Memory(self.config, self.sources)


class Memory(Learner):
    """A DQN whose replay buffer is weighed."""

    def measure(self, steps: int) -> float:
        """Bytes of a step in the buffer."""
        assert isinstance(self.model, DQN)
        buffer = self.model.replay_buffer
        assert buffer is not None
        parts = chain.from_iterable(part.values() if isinstance(part, dict) else [part] for part in vars(buffer).values())
        return sum(part.nbytes for part in parts if isinstance(part, np.ndarray)) / (buffer.buffer_size * buffer.n_envs)


@dataclass(frozen=True)
class Weights(Learning):
    """What the networks of a model weigh.

    Args:
        copied: Whether each network is weighed by itself, as if its sources were its own.
    """

    copied: bool = False

    def start(self) -> "Networks":
        """The model."""
        return Networks(self.config, self.sources, copied=self.copied)


class Networks(Learner):
    """A model whose networks are weighed: actor, critics and targets."""

    def __init__(self, fields: Mapping[str, Any], sources: int, *, copied: bool) -> None:
        super().__init__(fields, sources)
        self.copied = copied

    def measure(self, steps: int) -> float:
        """Bytes of all parameters and buffers; those that several networks share count once, unless each is weighed by itself."""
        shared: dict[int, Tensor] = {}
        total = 0
        for network in self.model.policy.children():
            parts = {id(part): part for part in network.state_dict(keep_vars=True).values()}
            total += sum(part.nbytes for part in parts.values())
            shared |= parts
        return float(total if self.copied else sum(part.nbytes for part in shared.values()))


def untrained_hub(env: VecEnv, count: int) -> Hub:
    """Agents of PPO that learned nothing, one seed each."""
    small: dict[str, Any] = {"n_steps": 2, "batch_size": 2 * env.num_envs, "device": "cpu"}
    agents = (PPO(runs.plain_policy(PPO, env), env, seed=seed, **small) for seed in range(count))
    return Hub(read_live(agent, f"untrained-{seed}") for seed, agent in enumerate(agents))


def cache_of(model: BaseAlgorithm) -> CachedVecEnv | None:
    """The CachedVecEnv that a model learns under, if it does."""
    env = model.get_env()
    while isinstance(env, VecEnvWrapper) and not isinstance(env, CachedVecEnv):
        env = env.venv
    return env if isinstance(env, CachedVecEnv) else None
