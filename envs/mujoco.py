"""HalfCheetah, Walker2d and Hopper whose physics and direction are keyword arguments.

Importing this module registers `hubrl/HalfCheetah-v5`, `hubrl/Walker2d-v5` and `hubrl/Hopper-v5`; through
Gymnasium's own notation one line does both: `gym.make("envs.mujoco:hubrl/HalfCheetah-v5", gravity=1.5)`.
With every argument at its default the task is Gymnasium's, bit for bit.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

# Gymnasium's own HalfCheetah uses an attribute that MuJoCo 4 deprecates, and MuJoCo would print a line and write a log
# file for every environment made. Its other warnings are printed as before.
if hasattr(mujoco, "set_mju_user_warning") and mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(lambda message: None if "settotalmass" in message else sys.stderr.write(f"{message}\n"))

Direction = Literal["forward", "backward"]


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
        motors: Factor on the strength of all motors, or one factor for each; 0 is a dead motor, -1 a reversed one.

    Raises:
        ValueError: If there are not as many factors as motors, or a factor but a motor's is not positive.
    """
    for name, factor in {"gravity": gravity, "mass": mass, "friction": friction}.items():
        if not factor > 0:
            raise ValueError(f"{name}={factor} is not a positive factor.")
    strengths = np.asarray(motors, dtype=float)
    if strengths.ndim and strengths.shape != (env.model.nu,):
        raise ValueError(f"motors={motors!r} gives {strengths.size} factors, the robot has {env.model.nu} motors.")
    env.model.opt.gravity[:] *= gravity
    env.model.body_mass[:] *= mass
    env.model.body_inertia[:] *= mass
    env.model.geom_friction[:, 0] *= friction
    env.model.actuator_gear[:, 0] *= strengths
    return env


def _build(robot: type[MujocoEnv], direction: Direction, kwargs: dict[str, Any]) -> MujocoEnv:
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction={direction!r} is neither 'forward' nor 'backward'.")
    physics = {name: kwargs.pop(name) for name in ("gravity", "mass", "friction", "motors") if name in kwargs}
    sign = 1.0 if direction == "forward" else -1.0
    env = robot(**{**kwargs, "forward_reward_weight": sign * kwargs.get("forward_reward_weight", 1.0)})
    return with_physics(env, **physics)


for _name, _builder in {"HalfCheetah": half_cheetah, "Walker2d": walker2d, "Hopper": hopper}.items():
    gym.register(f"hubrl/{_name}-v5", entry_point=_builder, max_episode_steps=1000)
