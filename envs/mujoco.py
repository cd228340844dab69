"""HalfCheetah, Walker2d and Hopper whose physics and direction are keyword arguments.

Importing this module registers `hubrl/HalfCheetah-v5`, `hubrl/Walker2d-v5` and `hubrl/Hopper-v5`;
through Gymnasium's own notation one line does both: `gym.make("envs.mujoco:hubrl/HalfCheetah-v5",
gravity=1.5)`. With every argument at its default the task is Gymnasium's, bit for bit.

`hubrl/<robot>Reversing-v5` and `hubrl/<robot>Shuttle-v5` are tasks that no single gait masters: a
motor, or the direction that pays, changes its sign at random times.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

# Gymnasium's own HalfCheetah uses an attribute that MuJoCo 4 deprecates, and MuJoCo would print a
# line and write a log file for every environment made. Its other warnings are printed as before.
if hasattr(mujoco, "set_mju_user_warning") and mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(
        lambda message: None if "settotalmass" in message else sys.stderr.write(f"{message}\n")
    )

Direction = Literal["forward", "backward"]
Hint = Literal["sign", "history", "none"]


def half_cheetah(direction: Direction = "forward", **kwargs: Any) -> MujocoEnv:
    """A HalfCheetah-v5; see `with_physics` for the physics, the rest goes to Gymnasium's class."""
    return _build(HalfCheetahEnv, direction, kwargs)


def walker2d(direction: Direction = "forward", **kwargs: Any) -> MujocoEnv:
    """A Walker2d-v5; see `with_physics` for the physics, the rest goes to Gymnasium's class."""
    return _build(Walker2dEnv, direction, kwargs)


def hopper(direction: Direction = "forward", **kwargs: Any) -> MujocoEnv:
    """A Hopper-v5; see `with_physics` for the physics, the rest goes to Gymnasium's class."""
    return _build(HopperEnv, direction, kwargs)


def with_physics(
    env: MujocoEnv,
    *,
    gravity: float = 1.0,
    mass: float = 1.0,
    friction: float = 1.0,
    motors: float | Sequence[float] = 1.0,
) -> MujocoEnv:
    """Change a robot's physics in place; every argument is a factor on the model's own value.

    Args:
        env: The robot, before its first reset.
        gravity: Factor on gravity.
        mass: Factor on every body's mass and inertia.
        friction: Factor on the sliding friction of every geometry.
        motors: Factor on the strength of all motors, or one factor for each; 0 is a dead motor, -1
            a reversed one.

    Raises:
        ValueError: If there are not as many factors as motors, or a factor but a motor's is not
            positive.
    """
    for name, factor in {"gravity": gravity, "mass": mass, "friction": friction}.items():
        if not factor > 0:
            raise ValueError(f"{name}={factor} is not a positive factor.")
    strengths = np.asarray(motors, dtype=float)
    if strengths.ndim and strengths.shape != (env.model.nu,):
        raise ValueError(
            f"motors={motors!r} gives {strengths.size} factors, the robot has {env.model.nu} "
            "motors."
        )
    env.model.opt.gravity[:] *= gravity
    env.model.body_mass[:] *= mass
    env.model.body_inertia[:] *= mass
    env.model.geom_friction[:, 0] *= friction
    env.model.actuator_gear[:, 0] *= strengths
    return env


class Alternating(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ABC):
    """A robot for which something changes its sign every so many steps, at random.

    The sign of the coming step, 1 or -1, is the attribute `sign`; it stands in `info["sign"]` too.
    The first is drawn.

    Args:
        env: The robot.
        every: Fewest and most steps between two changes, both included.
        hint: What is observed beside the robot's own observation: the `sign`; the last observation
            and action, from which it can be inferred (`history`); or nothing (`none`).

    Raises:
        ValueError: If a hint or a range cannot be.
    """

    def __init__(self, env: MujocoEnv, every: tuple[int, int], hint: Hint = "sign") -> None:
        super().__init__(env)
        if hint not in ("sign", "history", "none"):
            raise ValueError(f"hint={hint!r} is none of 'sign', 'history' and 'none'.")
        if not 1 <= every[0] <= every[1]:
            raise ValueError(f"every={every!r} is no range of steps.")
        self.every, self.hint, self.sign = (int(every[0]), int(every[1])), hint, 1
        assert env.observation_space.shape is not None
        assert env.action_space.shape is not None
        more = {
            "sign": 1,
            "none": 0,
            "history": env.observation_space.shape[0] + env.action_space.shape[0],
        }[hint]
        self.observation_space = gym.spaces.Box(
            -np.inf, np.inf, (env.observation_space.shape[0] + more,), np.float64
        )
        self._more = np.zeros(more)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a sign drawn at random."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._turn(1 if self.unwrapped.np_random.random() < 0.5 else -1)
        self._more = np.zeros_like(self._more)
        return self._observe(observation), {**info, "sign": self.sign}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step, then perhaps a change of sign, observed one step before it has an effect."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._left -= 1
        if self._left == 0:
            self._turn(-self.sign)
        if self.hint == "history":
            self._more[-len(action) :] = action
        observed = self._observe(observation)
        return observed, float(reward), terminated, truncated, {**info, "sign": self.sign}

    @abstractmethod
    def apply_sign(self) -> None:
        """Apply the sign to the robot."""

    def _turn(self, sign: int) -> None:
        self.sign = sign
        self._left = int(self.unwrapped.np_random.integers(self.every[0], self.every[1] + 1))
        self.apply_sign()

    def _observe(self, observation: np.ndarray) -> np.ndarray:
        if self.hint == "sign":
            self._more[0] = self.sign
        observed = np.concatenate([observation, self._more])
        if self.hint == "history":
            self._more[: len(observation)] = observation
        return observed


class Reversing(Alternating):
    """A robot one of whose motors changes its sign.

    Args:
        env: The robot.
        motor: Position of the motor among the actions; HalfCheetah's front thigh is 3.
        every: Fewest and most steps between two changes.
        hint: What is observed of the sign, see `Alternating`.
    """

    def __init__(self, env: MujocoEnv, motor: int, every: tuple[int, int], hint: Hint) -> None:
        self.motor = motor
        self.strength = float(env.model.actuator_gear[motor, 0])
        super().__init__(env, every, hint)

    def apply_sign(self) -> None:
        """Set the motor's sign."""
        robot = self.unwrapped
        assert isinstance(robot, MujocoEnv)
        robot.model.actuator_gear[self.motor, 0] = self.sign * self.strength


class Shuttle(Alternating):
    """A robot whose commanded direction reverses.

    The direction is observed, and only movement along it is rewarded.

    Args:
        env: The robot.
        every: Fewest and most steps between two commands.
        hint: What is observed of the sign, see `Alternating`.
    """

    def apply_sign(self) -> None:
        """Set the sign of the rewarded direction."""
        robot: Any = self.unwrapped
        robot._forward_reward_weight = self.sign * abs(robot._forward_reward_weight)


def reversing(
    robot: type[MujocoEnv],
    *,
    motor: int = 3,
    every: Sequence[int] = (150, 350),
    hint: Hint = "sign",
    **kwargs: Any,
) -> Reversing:
    """A robot with a motor that changes its sign; see `Reversing`, the rest goes to the robot."""
    return Reversing(_build(robot, "forward", kwargs), motor, _range(every), hint)


def shuttle(
    robot: type[MujocoEnv], *, every: Sequence[int] = (150, 250), hint: Hint = "sign", **kwargs: Any
) -> Shuttle:
    """A robot that is sent forward and back; see `Shuttle`, the rest goes to the robot."""
    return Shuttle(_build(robot, "forward", kwargs), _range(every), hint)


def _range(every: Sequence[int]) -> tuple[int, int]:
    if len(every) != 2:
        raise ValueError(f"every={list(every)!r} is no range of steps.")
    return every[0], every[1]


def _build(robot: type[MujocoEnv], direction: Direction, kwargs: dict[str, Any]) -> MujocoEnv:
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction={direction!r} is neither 'forward' nor 'backward'.")
    physics = {
        name: kwargs.pop(name)
        for name in ("gravity", "mass", "friction", "motors")
        if name in kwargs
    }
    sign = 1.0 if direction == "forward" else -1.0
    env = robot(
        **{**kwargs, "forward_reward_weight": sign * kwargs.get("forward_reward_weight", 1.0)}
    )
    return with_physics(env, **physics)


for _name, _builder, _robot in (
    ("HalfCheetah", half_cheetah, HalfCheetahEnv),
    ("Walker2d", walker2d, Walker2dEnv),
    ("Hopper", hopper, HopperEnv),
):
    gym.register(f"hubrl/{_name}-v5", entry_point=_builder, max_episode_steps=1000)
    gym.register(
        f"hubrl/{_name}Reversing-v5", entry_point=partial(reversing, _robot), max_episode_steps=1000
    )
    gym.register(
        f"hubrl/{_name}Shuttle-v5", entry_point=partial(shuttle, _robot), max_episode_steps=1000
    )
