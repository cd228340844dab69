"""What `hubrl tune` searches: options of method and policy, and settings of the algorithm.

The spaces of options stand beside their definitions; those of SB3's settings stand here, because
SB3 has none.
"""

from typing import Any, get_type_hints

from hubrl.errors import UnknownName, unknown
from hubrl.experiments.build_model import algorithm_class
from hubrl.experiments.config import RunConfig, load_hub
from hubrl.formats.search import Between, OneOf, SearchSpace, find_spaces
from hubrl.methods import find
from hubrl.policies.dqn import TeachingOptions
from hubrl.policies.on_policy.options import OutputOptions

LEARNING_RATE = Between(1e-5, 3e-3, log=True)
GAMMA = OneOf((0.9, 0.95, 0.98, 0.99, 0.995, 0.999))
OFF_POLICY: dict[str, SearchSpace] = {
    "learning_rate": LEARNING_RATE,
    "gamma": GAMMA,
    "batch_size": OneOf((64, 128, 256, 512)),
    "tau": OneOf((0.001, 0.005, 0.01, 0.02)),
}
Q_LEARNING: dict[str, SearchSpace] = {
    "learning_rate": LEARNING_RATE,
    "gamma": GAMMA,
    "batch_size": OneOf((32, 64, 128, 256)),
    "target_update_interval": OneOf((250, 1000, 5000, 10_000)),
    "exploration_fraction": Between(0.05, 0.5),
    "exploration_final_eps": Between(0.01, 0.1),
}
PROXIMAL: dict[str, SearchSpace] = {
    "learning_rate": LEARNING_RATE,
    "gamma": GAMMA,
    "gae_lambda": OneOf((0.8, 0.9, 0.95, 0.98, 1.0)),
    "ent_coef": Between(1e-8, 0.1, log=True),
    "clip_range": OneOf((0.1, 0.2, 0.3)),
    "n_epochs": OneOf((5, 10, 20)),
    "batch_size": OneOf((32, 64, 128, 256)),
}

ALGORITHM_SPACES: dict[str, dict[str, SearchSpace]] = {
    "ppo": PROXIMAL,
    "maskable_ppo": PROXIMAL,
    "recurrent_ppo": PROXIMAL,
    "a2c": {
        "learning_rate": LEARNING_RATE,
        "gamma": GAMMA,
        "gae_lambda": OneOf((0.8, 0.9, 0.95, 0.98, 1.0)),
        "ent_coef": Between(1e-8, 0.1, log=True),
        "n_steps": OneOf((5, 8, 16, 32, 64)),
    },
    "trpo": {
        "learning_rate": LEARNING_RATE,
        "gamma": GAMMA,
        "target_kl": OneOf((0.003, 0.01, 0.03)),
    },
    "dqn": Q_LEARNING,
    "qrdqn": Q_LEARNING,
    "sac": OFF_POLICY,
    "tqc": OFF_POLICY,
    "td3": OFF_POLICY,
    "ddpg": OFF_POLICY,
}
"""Ranges of SB3's settings, after those of the RL Zoo."""


def search_space(config: RunConfig, only: tuple[str, ...] = ()) -> dict[str, SearchSpace]:
    """What can be searched in a config, by the name of its field: `options.hold`.

    Args:
        config: The config.
        only: Names of what is searched; all by default.

    Raises:
        UnknownName: If a name has no search space.
    """
    options = {f"options.{name}": space for name, space in _option_spaces(config).items()}
    settings = ALGORITHM_SPACES.get(config.algorithm, {})
    space = {**options, **{f"algorithm_kwargs.{name}": one for name, one in settings.items()}}
    for name in only:
        if name not in space:
            raise UnknownName(unknown("option to search", name, space))
    return {name: one for name, one in space.items() if not only or name in only}


def _option_spaces(config: RunConfig) -> dict[str, SearchSpace]:
    """Spaces of the options of the method and, at the level of outputs, of the policy."""
    method = find(config.method)
    own = find_spaces(get_type_hints(method.__init__, include_extras=True))
    hub = load_hub(config)
    if hub is None:
        return own
    algorithm = algorithm_class(config.algorithm)
    level = config.level or hub.level(algorithm, config.method, tuned=config.tuned)
    if config.cached or level == "features":
        return own
    if config.algorithm == "dqn":
        # Sources explore for DQN only where the method has no options.
        taught = find_spaces(get_type_hints(TeachingOptions, include_extras=True))
        return taught if method.q_learning == "explorers" else {**own, **taught}
    of_policy = find_spaces(get_type_hints(OutputOptions, include_extras=True))
    idle = _without_effect(config)
    return {**own, **{name: one for name, one in of_policy.items() if name not in idle}}


def _without_effect(config: RunConfig) -> set[str]:
    """Options of the policy over outputs that a config's method refuses or ignores."""
    method, options = find(config.method), config.options
    mixture = (method.aggregation or options.get("aggregation", "mixture")) == "mixture"
    judges = mixture and method.judging_share > 0 and not options.get("top_k")
    idle: set[str] = set()
    if not mixture:
        idle |= {"hold"}
    if not judges:
        idle |= {"judging_share", "trial_share"}
    if options.get("fresh") is False:
        idle |= {"trial_share"}
    if method.keeps_source_std:
        idle |= {"source_std"}
    if not method.allows_residual:
        idle |= {"residual"}
    return idle


def with_values(config: RunConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config, as plain data, with some values in place of its own.

    Args:
        config: The config.
        values: Values by name, as in `search_space`.
    """
    fields = config.to_dict()
    for name, value in values.items():
        field, _, inner = name.partition(".")
        fields[field] = {**fields.get(field, {}), inner: value}
    return fields
