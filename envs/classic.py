"""Acrobot and CartPole whose physics are keyword arguments.

Importing this module registers `hubrl/Acrobot-v1` and `hubrl/CartPole-v1`; through Gymnasium's own
notation one line does both: `gym.make("envs.classic:hubrl/Acrobot-v1", link_mass_1=1.5)`. With
every argument at its default the task is Gymnasium's, bit for bit.

`acrobot_physics` and `cartpole_physics` draw an instance of the physics from the ranges of
MULTIPOLAR (Barekatain et al. 2020), as the authors' code has them.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv

Range = tuple[float, float]

ACROBOT_RANGES: dict[str, Range] = {
    "link_length_1": (0.3, 1.3),
    "link_length_2": (0.3, 1.3),
    "link_mass_1": (0.5, 1.5),
    "link_mass_2": (0.5, 1.5),
    "link_com_1": (0.05, 0.95),
    "link_com_2": (0.05, 0.95),
    "link_moi": (0.25, 1.5),
}
"""MULTIPOLAR's ranges for Acrobot, each sampled uniformly; units are those of `acrobot`."""

CARTPOLE_RANGES: dict[str, Range] = {
    "masscart": (0.2, 20.0),
    "masspole": (0.1, 5.0),
    "length": (0.1, 3.0),
    "force_mag": (6.0, 13.0),
    "gravity": (6.0, 14.0),
}
"""MULTIPOLAR's ranges for CartPole, each sampled uniformly; units are those of `cartpole`."""


def acrobot(
    *,
    link_length_1: float = 1.0,
    link_length_2: float = 1.0,
    link_mass_1: float = 1.0,
    link_mass_2: float = 1.0,
    link_com_1: float = 0.5,
    link_com_2: float = 0.5,
    link_moi: float = 1.0,
    **kwargs: Any,
) -> AcrobotEnv:
    """An Acrobot-v1 with other physics.

    The episode ends at Gymnasium's angles whatever the lengths are. The second link's length is
    drawn and moves its centre of mass, and nothing else depends on it.

    Args:
        link_length_1: Length of the first link, in metres.
        link_length_2: Length of the second link, in metres.
        link_mass_1: Mass of the first link, in kilograms.
        link_mass_2: Mass of the second link, in kilograms.
        link_com_1: Where the first link's centre of mass lies, as a share of its length: 0 at its
            joint, 1 at its end.
        link_com_2: Where the second link's centre of mass lies, as a share of its length.
        link_moi: Moment of inertia of each link, in kilograms times square metres.
        kwargs: The rest goes to Gymnasium's class.

    Raises:
        ValueError: If a length, a mass or the moment is not positive, or a centre of mass lies
            outside its link.
    """
    lengths = {"link_length_1": link_length_1, "link_length_2": link_length_2}
    _check_positive(
        {**lengths, "link_mass_1": link_mass_1, "link_mass_2": link_mass_2, "link_moi": link_moi}
    )
    for name, share in {"link_com_1": link_com_1, "link_com_2": link_com_2}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} is no share of the link's length, from 0 to 1.")
    env = AcrobotEnv(**kwargs)
    env.LINK_LENGTH_1, env.LINK_LENGTH_2 = link_length_1, link_length_2
    env.LINK_MASS_1, env.LINK_MASS_2 = link_mass_1, link_mass_2
    env.LINK_COM_POS_1, env.LINK_COM_POS_2 = link_com_1 * link_length_1, link_com_2 * link_length_2
    env.LINK_MOI = link_moi
    return env


def cartpole(
    *,
    masscart: float = 1.0,
    masspole: float = 0.1,
    length: float = 0.5,
    force_mag: float = 10.0,
    gravity: float = 9.8,
    **kwargs: Any,
) -> CartPoleEnv:
    """A CartPole-v1 with other physics.

    Args:
        masscart: Mass of the cart, in kilograms.
        masspole: Mass of the pole, in kilograms.
        length: Half the length of the pole, in metres, as Gymnasium has it.
        force_mag: Force of a push, in newtons.
        gravity: Acceleration of gravity, in metres per square second.
        kwargs: The rest goes to Gymnasium's class.

    Raises:
        ValueError: If one of them is not positive.
    """
    _check_positive(
        {
            "masscart": masscart,
            "masspole": masspole,
            "length": length,
            "force_mag": force_mag,
            "gravity": gravity,
        }
    )
    env = CartPoleEnv(**kwargs)
    env.masscart, env.masspole, env.length = masscart, masspole, length
    env.force_mag, env.gravity = force_mag, gravity
    # Gymnasium works these out once, in its constructor.
    env.total_mass = masspole + masscart
    env.polemass_length = masspole * length
    return env


def acrobot_physics(seed: int) -> dict[str, float]:
    """An Acrobot drawn from `ACROBOT_RANGES`, as keyword arguments of the task.

    Args:
        seed: One seed gives one Acrobot.

    Returns:
        Values rounded to two decimals, as MULTIPOLAR truncates them, so that they can be written in
        a config.
    """
    return _drawn(ACROBOT_RANGES, seed)


def cartpole_physics(seed: int) -> dict[str, float]:
    """Keyword arguments of a CartPole drawn from `CARTPOLE_RANGES`; see `acrobot_physics`."""
    return _drawn(CARTPOLE_RANGES, seed)


def _drawn(ranges: Mapping[str, Range], seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {name: round(float(rng.uniform(low, high)), 2) for name, (low, high) in ranges.items()}


def _check_positive(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} is not positive.")


gym.register(
    "hubrl/Acrobot-v1", entry_point=acrobot, max_episode_steps=500, reward_threshold=-100.0
)
gym.register(
    "hubrl/CartPole-v1", entry_point=cartpole, max_episode_steps=500, reward_threshold=475.0
)
