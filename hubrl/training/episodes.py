"""Returns of whole episodes; of whole games where an episode is one life."""

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.atari_wrappers import AtariWrapper, EpisodicLifeEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize


class Finished(NamedTuple):
    """An episode that has ended."""

    env: int
    value: float
    """Its return: Monitor's where there is one, so before clipping and normalisation."""
    whole: bool
    """Whether it was seen from its beginning."""
    began: int
    """Environment steps of the training at its beginning."""


class EpisodeReturns:
    """Sums of rewards since each environment's episode began.

    Args:
        env: The training's environments.
        now: Environment steps of the training so far.
        whole: Whether the episodes that are going on are seen from their beginning.
    """

    def __init__(self, env: VecEnv, now: int, *, whole: bool) -> None:
        self.env = env
        self.sums, self.lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
        self.whole, self.began = np.full(env.num_envs, whole), np.full(env.num_envs, now)
        self.lives = _ends_at_lost_lives(env)
        self.steps, self.episodes = 0, 0

    def step(
        self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], now: int
    ) -> list[Finished]:
        """Count one step of all environments; the episodes that it ended."""
        self.sums += true_rewards(self.env, rewards)
        self.lengths += 1
        if not dones.any():
            return []
        finished = []
        for env in map(int, np.flatnonzero(dones)):
            noted = infos[env].get("episode")
            if noted is None and self.lives:
                continue  # a life was lost, and the game goes on
            value = float(self.sums[env] if noted is None else noted["r"])
            finished.append(Finished(env, value, bool(self.whole[env]), int(self.began[env])))
            self.steps += int(self.lengths[env])
            self.episodes += 1
            self.sums[env], self.lengths[env], self.whole[env], self.began[env] = 0.0, 0, True, now
        return finished

    @property
    def round_steps(self) -> float:
        """Environment steps of an episode in every environment; infinite before any has ended."""
        return self.steps / self.episodes * self.env.num_envs if self.episodes else np.inf


def _ends_at_lost_lives(env: VecEnv) -> bool:
    """Whether `done` comes with every lost life, and Monitor's numbers when the game is over."""
    is_monitored = any(env.env_is_wrapped(Monitor))
    return is_monitored and (
        any(env.env_is_wrapped(EpisodicLifeEnv)) or any(env.env_is_wrapped(AtariWrapper))
    )


def true_rewards(env: VecEnv, rewards: np.ndarray) -> np.ndarray:
    """Rewards before a VecNormalize, if there is one."""
    normalize: VecNormalize | None = unwrap_vec_normalize(env)
    return rewards if normalize is None else normalize.get_original_reward()
