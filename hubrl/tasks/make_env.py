"""The vectorized environment of a Gymnasium id, as SB3 trains on it."""

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import error as gym_error
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.cards import Preprocessing
from hubrl.tasks.atari_vec_env import STACK, AtariVecEnv


def make_env(
    task: str,
    kwargs: dict[str, Any] | None = None,
    *,
    n_envs: int = 1,
    seed: int = 0,
    preprocessing: Preprocessing = "none",
    monitor: Path | None = None,
) -> VecEnv:
    """Parallel environments of a task, each under a Monitor.

    Args:
        task: Gymnasium id; `module:id` where importing a module registers it.
        kwargs: The task's keyword arguments, `render_mode` among them.
        n_envs: Number of environments.
        seed: Seed of the first; the others follow.
        preprocessing: `atari` for SB3's Atari preprocessing and four stacked frames, in ale-py's
            C++ if that can play the task and otherwise, with a warning, in SB3's AtariWrapper;
            `atari-sb3` for AtariWrapper in any case. Images are channel first from C++ and channel
            last from AtariWrapper; models and sources take either.
        monitor: Folder for Monitor's CSV files.

    Raises:
        BadConfig: If the task is unknown, its module cannot be imported, or it refuses its
            arguments.
        UnknownName: If the preprocessing is unknown.
    """
    check_task(task)
    if "mujoco" in str(gym.spec(task.rpartition(":")[2]).entry_point):
        _print_warnings_of_mujoco_once()
    builders: dict[Preprocessing, Callable[..., VecEnv]] = {
        "none": make_vec_env,
        "atari": _atari,
        "atari-sb3": _atari_sb3,
    }
    if preprocessing not in builders:
        raise UnknownName(unknown("preprocessing", preprocessing, builders))
    folder = None if monitor is None else str(monitor)
    # SB3's default is to render, for which LunarLander keeps its smoke and becomes slow.
    unrendered = {"render_mode": None, **(kwargs or {})}
    try:
        return builders[preprocessing](
            task, n_envs=n_envs, seed=seed, monitor_dir=folder, env_kwargs=unrendered
        )
    except (TypeError, ValueError, AssertionError, gym_error.Error) as error:
        given = f" with {kwargs}" if kwargs else ""
        raise BadConfig(f"Task {task!r} cannot be made{given}: {_first_line(error)}") from error
    except (ImportError, gym_error.DependencyNotInstalled) as error:
        raise BadConfig(
            f"Task {task!r} needs a package that is not installed: {_first_line(error)}"
        ) from error


def _print_warnings_of_mujoco_once() -> None:
    """Let MuJoCo print a warning once, not for every environment; a handler of the user's stays."""
    try:
        import mujoco
    except ImportError:
        return  # the task's own message names the package
    if mujoco.get_mju_user_warning() is not None:
        return
    printed = set[str]()

    def print_once(message: str) -> None:
        if message not in printed:
            printed.add(message)
            sys.stderr.write(f"MuJoCo: {message}\n")

    mujoco.set_mju_user_warning(print_once)


def _atari(
    task: str, *, n_envs: int, seed: int, monitor_dir: str | None, env_kwargs: dict[str, Any]
) -> VecEnv:
    """Games in C++; in Python, with a warning, where C++ cannot play them as SB3's wrappers do."""
    folder = None if monitor_dir is None else Path(monitor_dir)
    try:
        return AtariVecEnv(task, env_kwargs, n_envs=n_envs, seed=seed, monitor=folder)
    except BadConfig as reason:
        env = _atari_sb3(
            task, n_envs=n_envs, seed=seed, monitor_dir=monitor_dir, env_kwargs=env_kwargs
        )
        warnings.warn(
            f"{reason} It is played by AtariWrapper, more slowly; preprocessing='atari-sb3' "
            "does so without a warning.",
            stacklevel=3,
        )
        return env


def _atari_sb3(task: str, **given: Any) -> VecEnv:
    return VecFrameStack(make_atari_env(task, **given), STACK)


def check_task(task: str) -> None:
    """Refuse a task that is not registered.

    Raises:
        BadConfig: With the nearest registered one.
    """
    module, colon, name = task.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BadConfig(
                f"The module {module!r} of task {task!r} cannot be imported ({_first_line(error)})."
            ) from error
    games = ""
    if name not in gym.registry:
        try:  # ale-py's games are known once it is imported
            importlib.import_module("ale_py")
        except ImportError:
            games = " Atari games need ale-py, which is not installed: pip install 'hubrl[atari]'."
    try:
        gym.spec(name)
    except gym_error.Error as error:
        near = unknown("task", name, gym.registry).split(" Known:")[0]
        raise BadConfig(
            f"{near} Tasks are Gymnasium ids, `module:id` where a module registers them.{games}"
        ) from error


def normalized_env(env: VecEnv, gamma: float) -> VecNormalize:
    """Environments with normalized observations and rewards; cached features stay unchanged."""
    return VecNormalize(env, gamma=gamma, **vecnormalize_kwargs(env.observation_space))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else f"it failed a check ({type(error).__name__})"
