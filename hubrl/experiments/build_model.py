"""An SB3 algorithm from a run's config, with or without a hub."""

import importlib
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from hubrl.errors import BadConfig
from hubrl.experiments.config import RunConfig
from hubrl.hub import Hub
from hubrl.hub.algorithm_kwargs import policy_name, with_sb3s
from hubrl.nn.devices import check_device
from hubrl.policies.bf16 import precise
from hubrl.sources.trunks import ACTIVATIONS

SB3_CLASSES = {"ppo": "PPO", "a2c": "A2C", "dqn": "DQN", "sac": "SAC", "td3": "TD3", "ddpg": "DDPG"}
CONTRIB_CLASSES = {
    "qrdqn": "QRDQN",
    "tqc": "TQC",
    "trpo": "TRPO",
    "recurrent_ppo": "RecurrentPPO",
    "maskable_ppo": "MaskablePPO",
}

SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
"""Arguments of SB3's algorithms that may be schedules."""


def build_model(
    config: RunConfig,
    env: VecEnv,
    hub: Hub | None,
    *,
    tensorboard: Path | None = None,
    verbose: int = 0,
    seed: int | None = None,
) -> BaseAlgorithm:
    """The algorithm of a config, over a hub if its method has one.

    Args:
        config: The run's config.
        env: Its environments.
        hub: Its hub.
        tensorboard: Folder for TensorBoard's events.
        verbose: 1 for SB3's table.
        seed: Seed of the model and of the environments; the config's by default.

    Raises:
        BadConfig: If the algorithm's package is missing, it refuses its arguments or the task, or
            the device is not there.
    """
    check_device(config.device)
    algorithm = algorithm_class(config.algorithm)
    kwargs = dict(config.algorithm_kwargs)
    given = dict(kwargs.pop("policy_kwargs", None) or {})
    if isinstance(given.get("activation_fn"), str):
        given["activation_fn"] = activation_class(given["activation_fn"])
    kwargs |= {
        name: linear_schedule(name, kwargs[name])
        for name in SCHEDULED
        if isinstance(kwargs.get(name), str)
    }
    policy, own = _policy(algorithm, config, env, hub)
    policy_kwargs = with_sb3s(own, given)
    common: dict[str, Any] = {
        "env": env,
        "seed": config.seed if seed is None else seed,
        "device": config.device,
        "verbose": verbose,
    }
    common["tensorboard_log"] = None if tensorboard is None else str(tensorboard)
    try:
        return algorithm(policy, policy_kwargs=policy_kwargs, **common, **kwargs)
    except TypeError as error:
        raise BadConfig(
            f"{algorithm.__name__} does not take algorithm_kwargs {kwargs} ({error})."
        ) from error
    except (AssertionError, ValueError) as error:
        # SB3's own refusals, of an action space or of a number.
        reason = str(error).splitlines()[0]
        raise BadConfig(
            f"{algorithm.__name__} cannot be built for {config.task}: {reason}"
        ) from error


def _policy(
    algorithm: type[BaseAlgorithm], config: RunConfig, env: VecEnv, hub: Hub | None
) -> tuple[Any, dict[str, Any]]:
    """The policy, and its keyword arguments, of a model over a hub or of plain SB3."""
    made: dict[str, Any]
    if hub is None:
        made = {"policy": sb3_policy(algorithm, env), "policy_kwargs": {}}
        made |= precise(algorithm, config.precision, env.observation_space)
    else:
        made = hub.agent(
            algorithm,
            config.method,
            level=config.level,
            tuned=config.tuned,
            source_lr=config.source_lr,
            cached=config.cached,
            precision=config.precision,
            **{**_action_meanings(algorithm, config, env, hub), **config.options},
        )
    return made["policy"], made["policy_kwargs"]


def _action_meanings(
    algorithm: type[BaseAlgorithm], config: RunConfig, env: VecEnv, hub: Hub
) -> dict[str, Any]:
    """The meanings of the target's actions, where the outputs of sources with meanings are read."""
    level = (
        "features"
        if config.cached
        else config.level or hub.level(algorithm, config.method, tuned=config.tuned)
    )
    if level == "features" or not any(source.card.action_meanings for source in hub):
        return {}
    game = env.get_attr("unwrapped")[0]
    return (
        {"action_meanings": tuple(game.get_action_meanings())}
        if hasattr(game, "get_action_meanings")
        else {}
    )


def sb3_policy(algorithm: type[BaseAlgorithm], env: VecEnv) -> str:
    """SB3's own policy for a task, without a hub."""
    image = env.observation_space.shape is not None and len(env.observation_space.shape) == 3
    return policy_name(algorithm, env.observation_space).replace("Mlp", "Cnn" if image else "Mlp")


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """An algorithm by the name of its package.

    Raises:
        BadConfig: If it is sb3-contrib's, which is not installed.
    """
    try:
        contrib = name in CONTRIB_CLASSES
        module = importlib.import_module("sb3_contrib" if contrib else "stable_baselines3")
        found: type[BaseAlgorithm] = getattr(
            module, CONTRIB_CLASSES[name] if contrib else SB3_CLASSES[name]
        )
    except ImportError as error:
        raise BadConfig(f"Algorithm {name!r} is sb3-contrib's; install hubrl[contrib].") from error
    return found


def activation_class(name: str) -> type[nn.Module]:
    """An activation by its name in torch or in a card.

    Raises:
        BadConfig: If there is no such activation.
    """
    classes = {**ACTIVATIONS, **{kind.__name__.lower(): kind for kind in ACTIVATIONS.values()}}
    if name.lower() not in classes:
        raise BadConfig(
            f"activation_fn={name!r} was given; expected one of {', '.join(ACTIVATIONS)}."
        )
    return classes[name.lower()]


def linear_schedule(name: str, text: str) -> LinearSchedule:
    """A schedule that falls to zero, in the RL Zoo's notation: `lin_2.5e-4` starts at 2.5e-4.

    Raises:
        BadConfig: If the text has another form, or the number is not above zero.
    """
    kind, _, number = text.partition("_")
    try:
        start = float(number)
    except ValueError:
        start = 0.0
    if kind != "lin" or not 0 < start < float("inf"):
        raise BadConfig(
            f"{name}={text!r} was given; expected a number, or lin_ and a number (lin_2.5e-4) "
            "that falls linearly to zero."
        )
    return LinearSchedule(start, 0.0, end_fraction=1.0)
