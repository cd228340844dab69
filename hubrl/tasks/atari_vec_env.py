"""Atari games in ale-py's C++ vector environment, played to SB3's conventions.

SB3's AtariWrapper is Python around every single frame. Here four frames, their maximum and their scaling are one call into C++, and
AtariWrapper, Monitor and VecFrameStack are kept to beyond that: no-ops, FIRE, lives, signs of rewards, statistics of whole games. Every
game is a vector environment of one, since SB3 plays on by itself in a game that has just lost a life while the others stand still; a
vector of many can only step all. What a game does in a step is a generator that yields whenever C++ plays a few frames of it, so that
all games play at once, those that restart among them.
"""

import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from jaxtyping import Bool, Float32, UInt8
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from hubrl.errors import BadConfig, SpaceMismatch

FRAME_SKIP = 4
"""Frames of a step, as AtariWrapper has it."""

NOOP_MAX = 30
"""Most frames without action at the start of a game; the least is one."""

STACK = 4
"""Frames of an observation, the latest last."""

SIDE = 84
"""Pixels of a frame, along either side."""

NEEDED = (0, 12)
"""The ale-py whose vector environment this was written for; earlier ones count frames and no-ops otherwise."""

NO_LIMIT = 2**31 - 1

_NOOP, _FIRE, _SECOND = range(3)

_STRENGTH = [1.0]
"""Of a paddle, whose games are played with buttons here."""

_TAKEN = {"game", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode", "continuous_action_threshold"}
_FIXED = {
    "mode": None,
    "difficulty": None,
    "obs_type": "rgb",
    "frameskip": 1,
    "continuous": False,
    "render_mode": None,
    "sound_obs": False,
}

_Came = TypeVar("_Came")
Playing = Generator[None, None, _Came]
"""A game that plays until something comes of it; it yields while C++ is at it."""

Frame = UInt8[np.ndarray, f"1 {SIDE} {SIDE}"]
Frames = UInt8[np.ndarray, f"games {STACK} {SIDE} {SIDE}"]


class Rules(NamedTuple):
    """What ale-py's vector environment has to know of a task to play it."""

    task: str
    game: str
    """The game's name in snake case."""
    repeat_action_probability: float
    """The probability that a frame repeats the last action."""
    full_action_space: bool
    limit: int
    """Frames after which a game is cut off."""
    meanings: tuple[str, ...]
    """What the actions mean, in order."""


First = tuple[Frame, dict[str, Any]]
"""The first frame of an episode, and the information on it."""


class Step(NamedTuple):
    """What came of a step."""

    frame: Frame
    reward: float
    """The game's own."""
    done: bool
    """Whether the agent's episode ends: a life was lost, or the game is over, or it was cut off."""
    info: dict[str, Any]
    first: First | None = None
    """Of the next episode, where this one ends."""


def rules_of(task: str, kwargs: dict[str, Any] | None = None) -> Rules:
    """The rules of a task, if ale-py's vector environment can play it as SB3's `make_atari_env` would.

    Args:
        task: Gymnasium id of a game of ale-py.
        kwargs: The task's keyword arguments.

    Raises:
        BadConfig: Saying why it cannot: not a bare game, an argument that it does not take, or an ale-py that is too old.
        TypeError, ValueError, gymnasium.error.Error: What the task itself raises if it refuses its arguments.
    """
    _check_version(task)
    from ale_py.env import AtariEnv

    env: Any = gym.make(task, **(kwargs or {}))
    try:
        wrapped: Any = env
        while type(wrapped) in (PassiveEnvChecker, OrderEnforcing):
            wrapped = wrapped.env
        if type(wrapped) is not AtariEnv:
            raise BadConfig(f"Task {task!r} is not a bare game of ale-py ({type(wrapped).__name__}), as its vector environment plays it.")
        asked: dict[str, Any] = wrapped._ezpickle_kwargs
        meanings = tuple(wrapped.get_action_meanings())
    finally:
        env.close()
    refused = {key: value for key, value in asked.items() if key not in _TAKEN and (key not in _FIXED or value != _FIXED[key])}
    if refused:
        named = ", ".join(f"{key}={value!r}" for key, value in refused.items())
        raise BadConfig(f"Task {task!r} is played with {named}, which ale-py's vector environment cannot do as SB3's wrappers do.")
    return Rules(
        task=task.rpartition(":")[2],
        game=asked["game"],
        repeat_action_probability=asked["repeat_action_probability"],
        full_action_space=asked["full_action_space"],
        limit=asked["max_num_frames_per_episode"] or NO_LIMIT,
        meanings=meanings,
    )


class Game:
    """One game, with what AtariWrapper and Monitor remember of it; what `get_attr` and `env_method` of the VecEnv reach.

    Args:
        rules: Of the task.
        monitor: The file of Monitor's statistics, without `.monitor.csv`; none is written if not given.
    """

    render_mode = None

    def __init__(self, rules: Rules, monitor: Path | None) -> None:
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
        self.began = time.time()
        header: dict[str, float | str] = {"t_start": self.began, "env_id": self.spec.id}
        self._writer = None if monitor is None else ResultsWriter(str(monitor), header)
        self._games: Any = AtariVectorEnv(
            rules.game,
            num_envs=1,
            num_threads=1,
            max_num_frames_per_episode=rules.limit,
            repeat_action_probability=rules.repeat_action_probability,
            full_action_space=rules.full_action_space,
            stack_num=1,
            frameskip=FRAME_SKIP,
            # ale-py draws from 0 to one less; zero is drawn again below.
            noop_max=NOOP_MAX + 1,
            # ale-py ends a step at the frame that loses the life, fires for one frame and before the no-ops, and forgets true rewards.
            use_fire_reset=False,
            episodic_life=False,
            reward_clipping=False,
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A game of AtariVecEnv has no {name!r}: it runs inside ale-py's C++. preprocessing='atari-sb3' plays it in Python, with all "
            "attributes of AtariEnv."
        )

    @property
    def unwrapped(self) -> "Game":
        """Itself."""
        return self

    def get_action_meanings(self) -> list[str]:
        """What the actions mean, as ale-py names them."""
        return list(self.rules.meanings)

    def step(self, action: int) -> Playing[Step]:
        """Four frames of an action; where they end the episode, the next one begins."""
        came = yield from self._act(action)
        return came._replace(first=(yield from self._restart())) if came.done else came

    def reset(self, seed: int | None) -> Playing[First]:
        """Begin a new game, whatever became of the old one; `seed` as in `start`."""
        first = yield from self._fire(*self.start(seed))
        self.episode = None
        return first

    def start(self, seed: int | None = None) -> First:
        """Begin a new game with its no-ops, and no FIRE yet.

        Args:
            seed: Of the no-ops and of the repeated actions, at most 31 bits; both draw on if not given.
        """
        return self._started(*self._games.reset(seed=seed))

    def close(self) -> None:
        """End the game's thread and close its file; a second call does nothing."""
        self._games = None
        if self._writer is not None:
            self._writer.close()

    def _act(self, action: int) -> Playing[Step]:
        self._games.ale.send([action], _STRENGTH)
        yield
        frames, rewards, terminations, truncations, info = self._games.ale.recv()
        before, info = self.lives, self._note(info)
        reward, terminated, self._ended = rewards.item(), terminations.item(), truncations.item()
        self.total += reward
        # Counted from the start of the game, as AtariEnv does; ale-py's vector environment leaves the no-ops out.
        truncated = not terminated and (self._ended or self.frames >= self.rules.limit)
        self.over = terminated or truncated
        self._ended = self._ended or terminated
        # Some games stay at zero lives for a few frames before they are over.
        terminated = terminated or 0 < self.lives < before
        info["TimeLimit.truncated"] = truncated and not terminated
        if self.over:
            self._record()
        return Step(frames[0], reward, self.over or terminated, info)

    def _restart(self) -> Playing[First]:
        """The next episode: of the same game unless that is over."""
        return (yield from self._fire(*(yield from self._next())))

    def _next(self) -> Playing[First]:
        """A new game if this one is over; otherwise it goes on for a step without action."""
        if not self.over:
            frame, _, _, info, _ = yield from self._act(_NOOP)
            if not self.over:
                return frame, info
        if not self._ended:
            return self.start()
        # A game that is over for ale-py begins anew at the next action, whichever that is.
        self._games.ale.send([_NOOP], _STRENGTH)
        yield
        frames, _, _, _, info = self._games.ale.recv()
        return self._started(frames, info)

    def _started(self, frames: UInt8[np.ndarray, f"1 1 {SIDE} {SIDE}"], info: dict[str, np.ndarray]) -> First:
        while not info["episode_frame_number"].item():
            frames, info = self._games.reset()
        self.total, self.over = 0.0, False
        return frames[0], self._note(info)

    def _fire(self, frame: Frame, info: dict[str, Any]) -> Playing[First]:
        """Press FIRE and the next action where the game has FIRE, as SB3's FireResetEnv does at every start of an episode."""
        for action in (_FIRE, _SECOND) if "FIRE" in self.rules.meanings else ():
            frame, _, done, info, _ = yield from self._act(action)
            if done:
                frame, info = yield from self._next()
        return frame, info

    def _note(self, info: dict[str, np.ndarray]) -> dict[str, Any]:
        """The information on this one game, as AtariEnv gives it."""
        noted: dict[str, Any] = {key: info[key].item() for key in ("lives", "episode_frame_number", "frame_number")}
        self.lives, self.frames = noted["lives"], noted["episode_frame_number"]
        return noted

    def _record(self) -> None:
        # Monitor sits below AtariWrapper: it counts frames, not steps, and the game's own rewards.
        self.episode = {"r": round(self.total, 6), "l": self.frames, "t": round(time.time() - self.began, 6)}
        if self._writer is not None:
            self._writer.write_row(self.episode)


class AtariVecEnv(VecEnv):
    """Parallel Atari games with SB3's Atari preprocessing, in ale-py's C++.

    Observations are four grey frames of 84 by 84, channel first, as SB3's policies see them behind VecTransposeImage: a model trained here
    loads on `make_atari_env`'s environments under VecFrameStack, and the other way round. `docs/atari.md` says what differs.

    Rewards are signs. `done` is true when a life is lost; `infos[i]["episode"]` has Monitor's numbers when the game is over: `r` the game's
    own return, `l` its frames, `t` seconds since the environment was made.

    Args:
        task: Gymnasium id of a game of ale-py, one frame a step.
        kwargs: The task's keyword arguments.
        n_envs: How many games.
        seed: Seed of the first; the others follow. Drawn if not given.
        monitor: Folder for Monitor's CSV files.

    Raises:
        BadConfig: If ale-py's vector environment cannot play the task as SB3's wrappers do.
    """

    def __init__(
        self, task: str, kwargs: dict[str, Any] | None = None, *, n_envs: int = 1, seed: int | None = None, monitor: Path | None = None
    ) -> None:
        rules = rules_of(task, kwargs)
        self.games = [Game(rules, None if monitor is None else monitor / str(rank)) for rank in range(n_envs)]
        self._stacks: Frames = np.zeros((n_envs, STACK, SIDE, SIDE), np.uint8)
        self._playing: list[Playing[Step]] = []
        super().__init__(n_envs, spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8), self.games[0].action_space)
        self.seed(seed)

    def reset(self) -> Frames:
        """The first observations of new games; games that are still going on are given up, and left out of the statistics."""
        self._settle()
        seeds = [None if seed is None else _bits(seed) for seed in self._seeds]
        began = together(game.reset(seed) for game, seed in zip(self.games, seeds, strict=True))
        self._reset_seeds()
        self._reset_options()
        # New, as after every step: what was returned before must not change.
        self._stacks = np.zeros_like(self._stacks)
        for index, (frame, self.reset_infos[index]) in enumerate(began):
            self._stacks[index, -1:] = frame
        return self._stacks

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        Args:
            actions: Index of every game's action.

        Raises:
            SpaceMismatch: If there are not as many as games, or one is none of the game's; ale-py's threads would wait for ever.
        """
        chosen = np.asarray(actions).astype(np.int64)
        if chosen.shape != (self.num_envs,) or chosen.min() < 0 or chosen.max() >= len(self.games[0].rules.meanings):
            raise SpaceMismatch(f"Actions {np.asarray(actions)!r} were given for {self.num_envs} games, which act in {self.action_space}.")
        self._playing = [game.step(action) for game, action in zip(self.games, chosen.tolist(), strict=True)]
        for playing in self._playing:
            next(playing)

    def step_wait(self) -> tuple[Frames, Float32[np.ndarray, " games"], Bool[np.ndarray, " games"], list[dict[str, Any]]]:
        """Observations, signs of rewards, ends of episodes and information.

        Where an episode ended, the observation is the first of the next, and the last is `infos[i]["terminal_observation"]`.
        """
        played, self._playing = together(self._playing), []
        stacks = np.empty_like(self._stacks)
        stacks[:, :-1] = self._stacks[:, 1:]
        infos = []
        for index, (game, came) in enumerate(zip(self.games, played, strict=True)):
            stacks[index, -1:] = came.frame
            if came.first is not None:
                came.info["terminal_observation"] = stacks[index].copy()
                stacks[index] = 0
                stacks[index, -1:], self.reset_infos[index] = came.first
            # It may also have ended behind the step, in the restart after a lost life.
            if game.episode is not None:
                came.info["episode"], game.episode = game.episode, None
            infos.append(came.info)
        self._stacks = stacks
        rewards = np.sign(np.array([came.reward for came in played], np.float32))
        return stacks, rewards, np.array([came.done for came in played]), infos

    def close(self) -> None:
        """End all games."""
        self._settle()
        for game in self.games:
            game.close()

    def _settle(self) -> None:
        """Let a step that has begun come to its end."""
        if self._playing:
            self.step_wait()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of every game."""
        return [getattr(self.games[index], attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of every game."""
        for index in self._get_indices(indices):
            setattr(self.games[index], attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """What a method of every game returns."""
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the games do what a wrapper would; true for Monitor, whose statistics `evaluate_policy` looks for, and AtariWrapper."""
        return [wrapper_class in (Monitor, AtariWrapper) for _ in self._get_indices(indices)]

    def get_images(self) -> Any:
        """Refused.

        Raises:
            BadConfig: Always.
        """
        return self.render()

    def render(self, mode: str | None = None) -> Any:
        """Refused.

        Raises:
            BadConfig: Always, since ale-py's vector environment shows nothing but observations.
        """
        raise BadConfig("ale-py's vector environment draws no pictures; preprocessing='atari-sb3' plays the game in Python, which does.")


def together(playing: Iterable[Playing[_Came]]) -> list[_Came]:
    """What comes of games, in their order; none waits for another to go on."""
    came: dict[int, _Came] = {}
    waiting = dict(enumerate(playing))
    while waiting:
        for index, game in list(waiting.items()):
            try:
                next(game)
            except StopIteration as end:
                came[index] = end.value
                del waiting[index]
    return [came[index] for index in sorted(came)]


def _check_version(task: str) -> None:
    """Refuse an ale-py without the vector environment that this module knows."""
    try:
        import ale_py
    except ImportError as error:
        raise BadConfig(f"Task {task!r} needs ale-py for its vector environment: install hubrl[atari].") from error
    if tuple(int(part) for part in ale_py.__version__.split(".")[:2]) < NEEDED:
        raise BadConfig(f"Task {task!r} has ale-py {ale_py.__version__}, whose vector environment is another; 0.12 or newer is needed.")


def _bits(seed: int) -> int:
    """Thirty-one bits for a seed of any size, unlike those of its neighbours."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) & 0x7FFFFFFF
