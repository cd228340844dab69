"""Agents of any algorithm for any spaces, as small as they come, and what they may be shown."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

FLAT = spaces.Box(-np.inf, np.inf, (4,))
ARM = spaces.Box(-1.0, 1.0, (2,))
KEYS = spaces.Discrete(3)
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)

ON_POLICY = {"n_steps": 8, "batch_size": 8}
OFF_POLICY = {"buffer_size": 8}

SMALLEST = {
    PPO: ON_POLICY,
    TRPO: ON_POLICY,
    MaskablePPO: ON_POLICY,
    A2C: {"n_steps": 8},
    **{algorithm: OFF_POLICY for algorithm in (DQN, QRDQN, SAC, TQC, TD3, DDPG)},
}


class Noise(gym.Env):
    """Any spaces: observations are drawn at random, and nothing that is done matters."""

    def __init__(self, observation_space=FLAT, action_space=ARM):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), 1.0, self.left == 0, False, {}


def untrained(
    algorithm,
    observations=FLAT,
    actions=ARM,
    policy=None,
    *,
    env=None,
    policy_kwargs=None,
    **kwargs,
):
    """An agent that learned nothing; its weights are drawn at random, so that none is at a special value."""
    env = env or Noise(observations, actions)
    policy = policy or (
        "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    )
    policy_kwargs = {"net_arch": [8], **(policy_kwargs or {})}
    model = algorithm(
        policy,
        env,
        policy_kwargs=policy_kwargs,
        device="cpu",
        seed=0,
        **SMALLEST[algorithm],
        **kwargs,
    )
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(std=0.1 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5)
    return model


def normalised(observations=FLAT, actions=ARM, **kwargs):
    """A task under VecNormalize, whose statistics are those of some dozen observations."""
    vec = VecNormalize(DummyVecEnv([lambda: Noise(observations, actions)]), **kwargs)
    vec.seed(0)
    vec.reset()
    for _ in range(30):
        vec.step(np.array([actions.sample()]))
    return vec


def draw(space, count, seed=0):
    """A batch of observations, as `predict` takes them; images are of every brightness."""
    if isinstance(space, spaces.Dict):
        return {key: draw(part, count, seed) for key, part in space.spaces.items()}
    space.seed(seed)
    rows = np.stack([space.sample() for _ in range(count)])
    if rows.dtype == np.uint8:
        return (rows * np.linspace(0, 1, count).reshape(-1, *[1] * len(space.shape))).astype(
            np.uint8
        )
    return rows
