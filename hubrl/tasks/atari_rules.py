"""The rules of an Atari task, as ale-py's vector environment needs them."""

from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from hubrl.errors import BadConfig

MIN_ALE_PY = (0, 12)
"""First ale-py with this vector environment; earlier ones count frames and no-ops differently."""

UNLIMITED_FRAMES = 2**31 - 1

_SUPPORTED = {
    "game",
    "repeat_action_probability",
    "full_action_space",
    "max_num_frames_per_episode",
    "continuous_action_threshold",
}
_FIXED = {
    "mode": None,
    "difficulty": None,
    "obs_type": "rgb",
    "frameskip": 1,
    "continuous": False,
    "render_mode": None,
    "sound_obs": False,
}


class GameRules(NamedTuple):
    """The arguments of ale-py's vector environment for a task."""

    task: str
    game: str
    """The game's name in snake case."""
    repeat_action_probability: float
    """The probability that a frame repeats the last action."""
    full_action_space: bool
    max_frames: int
    """Frames after which a game is truncated."""
    meanings: tuple[str, ...]
    """Meanings of the actions, in order."""


def read_rules(task: str, kwargs: dict[str, Any] | None = None) -> GameRules:
    """The rules of a task that ale-py's vector environment can play as SB3's `make_atari_env` does.

    Args:
        task: Gymnasium id of a game of ale-py.
        kwargs: The task's keyword arguments.

    Raises:
        BadConfig: If it cannot: the task is no bare game, has an unsupported argument, or ale-py is
            too old.
        TypeError, ValueError, gymnasium.error.Error: If the task itself refuses its arguments.
    """
    _check_version(task)
    from ale_py.env import AtariEnv

    env: Any = gym.make(task, **(kwargs or {}))
    try:
        bare: Any = env
        while type(bare) in (PassiveEnvChecker, OrderEnforcing):
            bare = bare.env
        if type(bare) is not AtariEnv:
            kind = type(bare).__name__
            raise BadConfig(
                f"Task {task!r} is not a bare game of ale-py ({kind}), as its vector "
                "environment needs."
            )
        given: dict[str, Any] = bare._ezpickle_kwargs
        meanings = tuple(bare.get_action_meanings())
    finally:
        env.close()
    _check_arguments(task, given)
    return GameRules(
        task=task.rpartition(":")[2],
        game=given["game"],
        repeat_action_probability=given["repeat_action_probability"],
        full_action_space=given["full_action_space"],
        max_frames=given["max_num_frames_per_episode"] or UNLIMITED_FRAMES,
        meanings=meanings,
    )


def _check_arguments(task: str, given: dict[str, Any]) -> None:
    unsupported = [
        f"{key}={value!r}"
        for key, value in given.items()
        if key not in _SUPPORTED and (key not in _FIXED or value != _FIXED[key])
    ]
    if unsupported:
        raise BadConfig(
            f"Task {task!r} is played with {', '.join(unsupported)}, which ale-py's vector "
            "environment cannot do as SB3's wrappers do."
        )


def _check_version(task: str) -> None:
    try:
        import ale_py
    except ImportError as error:
        raise BadConfig(
            f"Task {task!r} needs ale-py for its vector environment: install hubrl[atari]."
        ) from error
    if tuple(int(part) for part in ale_py.__version__.split(".")[:2]) < MIN_ALE_PY:
        raise BadConfig(
            f"Task {task!r} has ale-py {ale_py.__version__}, whose vector environment is "
            "another; 0.12 or newer is needed."
        )
