"""One Atari game in ale-py's C++, with the state that AtariWrapper and Monitor keep of it.

A game is a vector environment of one: SB3 plays on in a game that has just lost a life while the
others wait, and a vector of many can only step all. A step is a generator that yields whenever C++
plays some frames, so that all games play at once, restarting ones among them.
"""

import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from stable_baselines3.common.monitor import ResultsWriter

from hubrl.tasks.atari_rules import GameRules

FRAME_SKIP = 4
"""Frames of a step, as in AtariWrapper."""

NOOP_MAX = 30
"""Most frames without action at the start of a game; the least is one."""

SIDE = 84
"""Pixels of a frame, along either side."""

_NOOP, _FIRE, _SECOND = range(3)

_PADDLE_STRENGTH = [1.0]
"""Argument of games with continuous actions; actions are discrete here."""

Frame = UInt8[np.ndarray, f"1 {SIDE} {SIDE}"]
FirstFrame = tuple[Frame, dict[str, Any]]
"""The first frame of an episode, and its info."""

_Result = TypeVar("_Result")
Pending = Generator[None, None, _Result]
"""A computation of a game; it yields while C++ works and returns its result."""


class StepResult(NamedTuple):
    """The result of a step."""

    frame: Frame
    reward: float
    """The game's own reward."""
    done: bool
    """Whether the agent's episode ends: a life lost, the game over or truncated."""
    info: dict[str, Any]
    first: FirstFrame | None = None
    """The start of the next episode, if this one ends."""


class AtariGame:
    """One game, as `get_attr` and `env_method` of the VecEnv reach it.

    Args:
        rules: The task's rules.
        monitor: File of Monitor's statistics, without `.monitor.csv`; None for no file.
    """

    render_mode = None

    def __init__(self, rules: GameRules, monitor: Path | None) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self.rules = rules
        self.spec = gym.spec(rules.task)
        self.action_space = spaces.Discrete(len(rules.meanings))
        self.observation_space = spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        self.lives = 0
        self.over = True
        self._ended = False
        self.frames = 0
        self.total = 0.0
        self.episode: dict[str, float] | None = None
        self.started_at = time.time()
        header: dict[str, float | str] = {"t_start": self.started_at, "env_id": self.spec.id}
        self._writer = None if monitor is None else ResultsWriter(str(monitor), header)
        self._games: Any = AtariVectorEnv(
            rules.game,
            num_envs=1,
            num_threads=1,
            max_num_frames_per_episode=rules.max_frames,
            repeat_action_probability=rules.repeat_action_probability,
            full_action_space=rules.full_action_space,
            stack_num=1,
            frameskip=FRAME_SKIP,
            # ale-py draws from 0 to one less; zero is drawn again below.
            noop_max=NOOP_MAX + 1,
            # ale-py ends a step at the frame that loses the life, fires for one frame and before
            # the no-ops, and loses true rewards.
            use_fire_reset=False,
            episodic_life=False,
            reward_clipping=False,
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A game of AtariVecEnv has no {name!r}: it runs inside ale-py's C++. "
            "preprocessing='atari-sb3' plays it in Python, with all attributes of AtariEnv."
        )

    @property
    def unwrapped(self) -> "AtariGame":
        """The game itself."""
        return self

    def get_action_meanings(self) -> list[str]:
        """The meanings of the actions, as ale-py names them."""
        return list(self.rules.meanings)

    def step(self, action: int) -> Pending[StepResult]:
        """Four frames of an action and, where they end the episode, the start of the next."""
        result = yield from self._act(action)
        return result._replace(first=(yield from self._restart())) if result.done else result

    def reset(self, seed: int | None) -> Pending[FirstFrame]:
        """A new game, whatever the state of the current one; `seed` as in `start`."""
        first = yield from self._fire(*self.start(seed))
        self.episode = None
        return first

    def start(self, seed: int | None = None) -> FirstFrame:
        """A new game with its no-ops, before FIRE.

        Args:
            seed: Seed of the no-ops and of repeated actions, at most 31 bits; None continues both.
        """
        return self._started(*self._games.reset(seed=seed))

    def close(self) -> None:
        """End the game's thread and close its file; a second call does nothing."""
        self._games = None
        if self._writer is not None:
            self._writer.close()

    def _act(self, action: int) -> Pending[StepResult]:
        self._games.ale.send([action], _PADDLE_STRENGTH)
        yield
        frames, rewards, terminations, truncations, info = self._games.ale.recv()
        lives, info = self.lives, self._read_info(info)
        reward, terminated, self._ended = rewards.item(), terminations.item(), truncations.item()
        self.total += reward
        # Frames since the game's start, as in AtariEnv; ale-py's own count leaves the no-ops out.
        truncated = not terminated and (self._ended or self.frames >= self.rules.max_frames)
        self.over = terminated or truncated
        self._ended = self._ended or terminated
        # Some games stay at zero lives for a few frames before they are over.
        terminated = terminated or 0 < self.lives < lives
        info["TimeLimit.truncated"] = truncated and not terminated
        if self.over:
            self._record()
        return StepResult(frames[0], reward, self.over or terminated, info)

    def _restart(self) -> Pending[FirstFrame]:
        """The next episode, of the same game unless that is over."""
        return (yield from self._fire(*(yield from self._next())))

    def _next(self) -> Pending[FirstFrame]:
        """The first frame of a new game if this one is over, else that of a step without action."""
        if not self.over:
            frame, _, _, info, _ = yield from self._act(_NOOP)
            if not self.over:
                return frame, info
        if not self._ended:
            return self.start()
        # A game that is over for ale-py restarts at the next action, whichever that is.
        self._games.ale.send([_NOOP], _PADDLE_STRENGTH)
        yield
        frames, _, _, _, info = self._games.ale.recv()
        return self._started(frames, info)

    def _started(
        self, frames: UInt8[np.ndarray, f"1 1 {SIDE} {SIDE}"], info: dict[str, np.ndarray]
    ) -> FirstFrame:
        while not info["episode_frame_number"].item():
            frames, info = self._games.reset()
        self.total, self.over = 0.0, False
        return frames[0], self._read_info(info)

    def _fire(self, frame: Frame, info: dict[str, Any]) -> Pending[FirstFrame]:
        """Press FIRE and the next action, if the game has FIRE, as SB3's FireResetEnv does."""
        for action in (_FIRE, _SECOND) if "FIRE" in self.rules.meanings else ():
            frame, _, done, info, _ = yield from self._act(action)
            if done:
                frame, info = yield from self._next()
        return frame, info

    def _read_info(self, info: dict[str, np.ndarray]) -> dict[str, Any]:
        """The info of this one game, as AtariEnv gives it."""
        keys = ("lives", "episode_frame_number", "frame_number")
        own: dict[str, Any] = {key: info[key].item() for key in keys}
        self.lives, self.frames = own["lives"], own["episode_frame_number"]
        return own

    def _record(self) -> None:
        # Monitor is below AtariWrapper: it counts frames, not steps, and the game's own rewards.
        seconds = round(time.time() - self.started_at, 6)
        self.episode = {"r": round(self.total, 6), "l": self.frames, "t": seconds}
        if self._writer is not None:
            self._writer.write_row(self.episode)


def run_together(pending: Iterable[Pending[_Result]]) -> list[_Result]:
    """The results of several games' computations, in order; none waits for another."""
    results: dict[int, _Result] = {}
    waiting = dict(enumerate(pending))
    while waiting:
        for index, game in list(waiting.items()):
            try:
                next(game)
            except StopIteration as end:
                results[index] = end.value
                del waiting[index]
    return [results[index] for index in sorted(results)]
