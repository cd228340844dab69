"""Toy tasks and tiny agents that tests share."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from hubrl import Hub

VECTOR = spaces.Box(-10.0, 10.0, (4,))
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
PARTS = spaces.Dict({"camera": IMAGE, "joints": VECTOR})

STEER = spaces.Box(-1.0, 1.0, (2,))
CHOOSE = spaces.Discrete(3)

ON_POLICY = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}
OFF_POLICY = {"learning_starts": 16, "batch_size": 8, "buffer_size": 200, "train_freq": 8}
TINY = {"net_arch": [8]}

SETTINGS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: ON_POLICY,
    A2C: {"n_steps": 16},
    DQN: OFF_POLICY | {"target_update_interval": 16},
    SAC: OFF_POLICY,
    TD3: OFF_POLICY,
    QRDQN: OFF_POLICY | {"target_update_interval": 16},
    TQC: OFF_POLICY,
    RecurrentPPO: ON_POLICY,
    MaskablePPO: ON_POLICY,
    TRPO: {"n_steps": 32, "batch_size": 16, "cg_max_steps": 3},
}
"""Settings with which each algorithm learns a little in 128 steps."""

CHOOSES = (DQN, QRDQN, MaskablePPO)
"""Algorithms that are tested on discrete actions."""


class Toy(gym.Env[Any, Any]):
    """Random observations in any space; the reward is the sum of the action. Episodes last ten steps."""

    def __init__(
        self,
        observations: spaces.Space[Any] = VECTOR,
        actions: spaces.Space[Any] = STEER,
        length: int = 10,
    ) -> None:
        self.observation_space = observations
        self.action_space = actions
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.played = 0
        return self._observe(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.played += 1
        return (
            self._observe(self.observation_space),
            float(np.sum(action)),
            False,
            self.played >= self.length,
            {},
        )

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])

    def _observe(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._observe(part) for key, part in space.spaces.items()}
        if space.dtype == np.uint8:
            return self.np_random.integers(0, 256, space.shape, dtype=np.uint8)
        return self.np_random.normal(size=space.shape).astype(np.float32)


class Constant(nn.Module):
    """An action head that says the same whatever is seen."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.full((len(features), 2), self.value)


def toy_for(algorithm: type[BaseAlgorithm], observations: spaces.Space[Any] = VECTOR) -> Toy:
    """A toy task that the algorithm can act in."""
    return Toy(observations, CHOOSE if algorithm in CHOOSES else STEER)


def tiny(
    algorithm: type[BaseAlgorithm], env: gym.Env[Any, Any], seed: int = 0, **policy_kwargs: Any
) -> BaseAlgorithm:
    """An untrained agent with tiny networks, as a source."""
    vector = isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1
    kwargs: dict[str, Any] = (
        TINY | ({} if vector else {"features_extractor_kwargs": _few_features(env)}) | policy_kwargs
    )
    return algorithm(
        _policy(env), env, seed=seed, device="cpu", policy_kwargs=kwargs, **SETTINGS[algorithm]
    )


def tiny_hub(
    env: gym.Env[Any, Any], algorithms: tuple[type[BaseAlgorithm], ...] | None = None
) -> Hub:
    """A hub of two untrained agents, PPO and SAC or DQN, that fit a task."""
    algorithms = algorithms or (
        (PPO, SAC) if isinstance(env.action_space, spaces.Box) else (PPO, DQN)
    )
    return Hub.from_agents(
        [tiny(algorithm, env, seed) for seed, algorithm in enumerate(algorithms, start=1)]
    )


def target(
    algorithm: type[BaseAlgorithm],
    env: gym.Env[Any, Any] | Any,
    made: dict[str, Any],
    seed: int = 0,
    **settings: Any,
) -> BaseAlgorithm:
    """A target with tiny networks, from what `Hub.agent` makes."""
    kwargs = (
        TINY
        | ({"lstm_hidden_size": 8} if algorithm is RecurrentPPO else {})
        | made["policy_kwargs"]
    )
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else made["policy"]
    return algorithm(
        policy,
        env,
        seed=seed,
        device="cpu",
        policy_kwargs=kwargs,
        **(SETTINGS[algorithm] | settings),
    )


def _policy(env: gym.Env[Any, Any]) -> str:
    if isinstance(env.observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "MlpPolicy" if len(env.observation_space.shape or ()) == 1 else "CnnPolicy"


def _few_features(env: gym.Env[Any, Any]) -> dict[str, int]:
    return (
        {"cnn_output_dim": 8}
        if isinstance(env.observation_space, spaces.Dict)
        else {"features_dim": 8}
    )


def quick_dqn(env: gym.Env[Any, Any], made: dict[str, Any]) -> DQN:
    """A DQN that learns rewards alone (gamma 0), fast, from what `Hub.agent` makes."""
    settings = SETTINGS[DQN] | {
        "learning_rate": 3e-3,
        "train_freq": 1,
        "gamma": 0.0,
        "exploration_fraction": 0.01,
    }
    kwargs = {"net_arch": [32], **made["policy_kwargs"]}
    return DQN(made["policy"], env, seed=0, device="cpu", policy_kwargs=kwargs, **settings)
