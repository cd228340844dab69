"""Atari games in ale-py's C++ vector environment, by SB3's conventions.

SB3's AtariWrapper is Python around every single frame. Here four frames, their maximum and their
scaling are one call into C++; everything else is as in AtariWrapper, Monitor and VecFrameStack:
no-ops, FIRE, lives, signs of rewards, statistics of whole games.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, UInt8
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.tasks.atari_game import SIDE, AtariGame, Pending, StepResult, run_together
from hubrl.tasks.atari_rules import read_rules

STACK = 4
"""Frames of an observation, the latest last."""

Frames = UInt8[np.ndarray, f"games {STACK} {SIDE} {SIDE}"]
StepReturn = tuple[
    Frames, Float32[np.ndarray, " games"], Bool[np.ndarray, " games"], list[dict[str, Any]]
]


class AtariVecEnv(VecEnv):
    """Parallel Atari games with SB3's Atari preprocessing, in ale-py's C++.

    Observations are four grey frames of 84 by 84, channel first, as SB3's policies read them behind
    VecTransposeImage: models move freely between these games and `make_atari_env`'s under
    VecFrameStack. `docs/guides/atari.md` lists the differences.

    Rewards are signs. `done` is true when a life is lost; `infos[i]["episode"]` has Monitor's
    numbers when the game is over: `r` the game's own return, `l` its frames, `t` seconds since the
    environment was made.

    Args:
        task: Gymnasium id of a game of ale-py, one frame a step.
        kwargs: The task's keyword arguments.
        n_envs: Number of games.
        seed: Seed of the first; the others follow. Random by default.
        monitor: Folder for Monitor's CSV files.

    Raises:
        BadConfig: If ale-py's vector environment cannot play the task as SB3's wrappers do.
    """

    def __init__(
        self,
        task: str,
        kwargs: dict[str, Any] | None = None,
        *,
        n_envs: int = 1,
        seed: int | None = None,
        monitor: Path | None = None,
    ) -> None:
        rules = read_rules(task, kwargs)
        files = [None if monitor is None else monitor / str(rank) for rank in range(n_envs)]
        self.games = [AtariGame(rules, file) for file in files]
        self._stacks: Frames = np.zeros((n_envs, STACK, SIDE, SIDE), np.uint8)
        self._pending: list[Pending[StepResult]] = []
        observation_space = spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
        super().__init__(n_envs, observation_space, self.games[0].action_space)
        self.seed(seed)

    def reset(self) -> Frames:
        """The first observations of new games; games in progress are left out of the statistics."""
        self._finish_step()
        seeds = [None if seed is None else _mixed_seed(seed) for seed in self._seeds]
        firsts = run_together(
            game.reset(seed) for game, seed in zip(self.games, seeds, strict=True)
        )
        self._reset_seeds()
        self._reset_options()
        # A new array, as after every step: the one returned before must not change.
        self._stacks = np.zeros_like(self._stacks)
        for index, (frame, self.reset_infos[index]) in enumerate(firsts):
            self._stacks[index, -1:] = frame
        return self._stacks

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        Args:
            actions: Index of every game's action.

        Raises:
            SpaceMismatch: If an action is missing or invalid; ale-py's threads would wait for ever.
        """
        chosen = np.asarray(actions).astype(np.int64)
        n_actions = len(self.games[0].rules.meanings)
        if chosen.shape != (self.num_envs,) or chosen.min() < 0 or chosen.max() >= n_actions:
            raise SpaceMismatch(
                f"Actions {np.asarray(actions)!r} were given for {self.num_envs} games, which "
                f"act in {self.action_space}."
            )
        pairs = zip(self.games, chosen.tolist(), strict=True)
        self._pending = [game.step(action) for game, action in pairs]
        for game in self._pending:
            next(game)

    def step_wait(self) -> StepReturn:
        """Observations, signs of rewards, ends of episodes and infos.

        Where an episode ended, the observation is the first of the next, and the last is
        `infos[i]["terminal_observation"]`.
        """
        results, self._pending = run_together(self._pending), []
        stacks = np.empty_like(self._stacks)
        stacks[:, :-1] = self._stacks[:, 1:]
        for index, (game, result) in enumerate(zip(self.games, results, strict=True)):
            stacks[index, -1:] = result.frame
            if result.first is not None:
                result.info["terminal_observation"] = stacks[index].copy()
                stacks[index] = 0
                stacks[index, -1:], self.reset_infos[index] = result.first
            # The game may also have ended after the step, in the restart after a lost life.
            if game.episode is not None:
                result.info["episode"], game.episode = game.episode, None
        self._stacks = stacks
        rewards = np.sign(np.array([result.reward for result in results], np.float32))
        dones = np.array([result.done for result in results])
        return stacks, rewards, dones, [result.info for result in results]

    def close(self) -> None:
        """End all games."""
        self._finish_step()
        for game in self.games:
            game.close()

    def _finish_step(self) -> None:
        if self._pending:
            self.step_wait()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of every game."""
        return [getattr(self.games[index], attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of every game."""
        for index in self._get_indices(indices):
            setattr(self.games[index], attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """The results of a method of every game."""
        methods = self.get_attr(method_name, indices)
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(
        self,
        wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """Whether the games do the work of a wrapper: true for Monitor and AtariWrapper."""
        return [wrapper_class in (Monitor, AtariWrapper) for _ in self._get_indices(indices)]

    def get_images(self) -> Any:
        """Not supported.

        Raises:
            BadConfig: Always.
        """
        return self.render()

    def render(self, mode: str | None = None) -> Any:
        """Not supported.

        Raises:
            BadConfig: Always, since ale-py's vector environment returns observations only.
        """
        raise BadConfig(
            "ale-py's vector environment draws no pictures; preprocessing='atari-sb3' plays "
            "the game in Python, which does."
        )


def _mixed_seed(seed: int) -> int:
    """Thirty-one bits for a seed of any size, unlike those of neighbouring seeds."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) & 0x7FFFFFFF
