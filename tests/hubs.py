"""Hubs of sources whose returns on toy tasks are known, and models that learn through them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import STEER, VECTOR, Constant, Toy, target

from hubrl import Hub, Source
from hubrl.selection.probe_verdict import Fate

LEVER = spaces.Box(-1.0, 1.0, (1,))
AIM = 0.8


def save_cartpoles(folder: Path, *names: str) -> Path:
    """A saved hub of untrained agents of CartPole."""
    agents = [
        PPO("MlpPolicy", "CartPole-v1", seed=seed, policy_kwargs={"net_arch": [8]}, device="cpu")
        for seed in range(len(names))
    ]
    Hub.from_agents(agents, names=names).save(folder)
    return folder


class Interrupt(BaseCallback):
    """Stops a training in its tracks, as a killed process would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise KeyboardInterrupt
        return True


class Aim(gym.Env[Any, Any]):
    """The reward is how near the action comes to 0.8, one at most; episodes last 40 steps."""

    observation_space = VECTOR
    action_space = LEVER
    total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.played = 0
        return self.np_random.normal(size=4).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.played += 1
        self.total += 1
        return (
            self.np_random.normal(size=4).astype(np.float32),
            1 - abs(float(action[0]) - AIM),
            False,
            self.played >= 40,
            {},
        )


def always(name: str, action: float) -> Source:
    """A source that does one thing in `Aim`."""
    head = nn.Linear(4, 1)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, action)
    return Source(
        encoder=nn.Flatten(), head=head, name=name, observation_space=VECTOR, action_space=LEVER
    )


def aiming(
    *sources: Source, algorithm: type[BaseAlgorithm] = PPO, n_envs: int = 1, **options: Any
) -> BaseAlgorithm:
    """A model that learns `Aim` through some sources."""
    env = make_vec_env(Aim, n_envs=n_envs, seed=0)
    return target(algorithm, env, Hub(sources).agent(algorithm, **options))


def steers(name: str, value: float) -> Source:
    """A source that earns twice its value a step in the toy task, where the most is two."""
    return Source(
        encoder=nn.Flatten(),
        head=Constant(value),
        name=name,
        observation_space=VECTOR,
        action_space=STEER,
    )


def up_and_down() -> Hub:
    """A source that earns 20 an episode of the toy task, the most there is, and one that loses as much."""
    return Hub([steers("up", 1.0), steers("down", -1.0)])


def trusted(model: BaseAlgorithm, *fates: Fate) -> BaseAlgorithm:
    """The model as behind a probe with these fates; without any, one that keeps every source."""
    selection = model.policy.selection
    selection.judge(fates or [Fate.KEPT] * selection.n_sources, [torch.nan] * selection.n_sources)
    model.policy.follow_selection()
    return model


def overtaken(worth: float = 0.1, **options: Any) -> BaseAlgorithm:
    """A model whose fresh pathway will come further than its source, which earns 2 an episode of 20."""
    env = make_vec_env(Toy, n_envs=4, seed=0)
    made = Hub([steers("one", worth)]).agent(PPO, **{"trial_share": 0.3, **options})
    np.random.seed(0)
    return trusted(
        target(PPO, env, made, learning_rate=1e-2, n_steps=64, batch_size=64, n_epochs=4, seed=0)
    )


class Turns(BaseCallback):
    """What is played in every step, the phase and whether episodes ended; placed before HubCallback."""

    def __init__(self) -> None:
        super().__init__()
        self.playing: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []
        self.phases: list[int] = []
        self.began: list[bool] = []

    def _on_step(self) -> bool:
        selection = self.model.policy.selection
        self.playing.append(selection.playing.copy())
        self.dones.append(self.locals["dones"].copy())
        self.phases.append(selection.trial.at)
        self.began.append(bool(np.all(self.model._last_episode_starts)))
        return True
