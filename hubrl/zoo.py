"""The RL Zoo with a hub: `policy_kwargs` for its YAML files, and searches that keep the hub.

Importing this module is what makes `-optimize` and `--trial-id` keep it. A YAML that calls
`features` or `outputs` imports it in time for `-optimize`; `--trial-id` needs
`--gym-packages hubrl.zoo`.
"""

import sys
from pathlib import Path
from typing import Any

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from hubrl.errors import UnknownName, unknown
from hubrl.hub import Hub

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C, "dqn": DQN}
"""Algorithms that use outputs, as the RL Zoo names them."""


def features(hub: str | Path, method: str = "hub-pathway", **options: Any) -> dict[str, Any]:
    """`policy_kwargs` over the sources' features, for any algorithm and SB3's own policy.

    Args:
        hub: The hub's folder, or `hf://owner/name[@revision]`.
        method: Name of a method (`hubrl methods`).
        options: Options of `Hub.policy_kwargs`.

    Raises:
        BadFile: If the hub cannot be read.
        UnknownName: If there is no such method or option.
    """
    keep_hub_in_searches()
    return Hub.load(hub).policy_kwargs(method, **options)


def outputs(
    hub: str | Path, method: str = "hub-pathway", *, algorithm: str = "ppo", **options: Any
) -> dict[str, Any]:
    """`policy_kwargs` over the sources' outputs, for `policy: hubrl.HubActorCriticPolicy`.

    For DQN the policy is `hubrl.HubDQNPolicy`.

    Args:
        hub: The hub's folder, or `hf://owner/name[@revision]`.
        method: Name of a method.
        algorithm: `ppo`, `a2c` or `dqn`.
        options: Options of `Hub.agent`.

    Raises:
        BadFile: If the hub cannot be read.
        UnknownName: If there is no such method or option, or the algorithm cannot use outputs.
    """
    if algorithm not in ALGORITHMS:
        raise UnknownName(unknown("algorithm that uses outputs", algorithm, ALGORITHMS))
    keep_hub_in_searches()
    made = Hub.load(hub).agent(ALGORITHMS[algorithm], method, level="outputs", **options)
    kwargs: dict[str, Any] = made["policy_kwargs"]
    return kwargs


class MergedSettings(dict[str, Any]):
    """Settings of an algorithm, in which new `policy_kwargs` are merged with those before.

    The RL Zoo copies a config's settings for each trial and updates the copy with what it drew,
    `policy_kwargs` (`net_arch`, `activation_fn`) among it; that would replace the hub's.
    """

    def copy(self) -> "MergedSettings":
        """A copy that merges too."""
        return MergedSettings(self)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """`dict.update`, but for `policy_kwargs`."""
        new = dict(*args, **kwargs)
        own = self.get("policy_kwargs")
        if isinstance(own, dict) and isinstance(new.get("policy_kwargs"), dict):
            new["policy_kwargs"] = {**own, **new["policy_kwargs"]}
        super().update(new)


def keep_hub_in_searches() -> None:
    """Let `rl_zoo3.train -optimize` and `--trial-id` keep a config's `policy_kwargs`; once."""
    if "rl_zoo3.exp_manager" not in sys.modules:
        return
    manager: Any = sys.modules["rl_zoo3.exp_manager"].ExperimentManager
    if getattr(manager.objective, "keeps_hub", False):
        return
    objective, load_trial = manager.objective, manager.load_trial
    preprocess = manager._preprocess_hyperparams

    def with_hub(self: Any, trial: Any) -> float:
        self._hyperparams = MergedSettings(self._hyperparams)
        value: float = objective(self, trial)
        return value

    def without_policy_kwargs(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A trial's settings. The zoo lets them replace a YAML's, which are texts until later."""
        settings: dict[str, Any] = load_trial(self, *args, **kwargs)
        self.drawn_policy_kwargs = settings.pop("policy_kwargs", {})
        return settings

    def with_drawn(self: Any, hyperparams: dict[str, Any]) -> Any:
        made, *rest = preprocess(self, hyperparams)
        drawn = getattr(self, "drawn_policy_kwargs", {})
        if drawn:
            made["policy_kwargs"] = {**made.get("policy_kwargs", {}), **drawn}
        return made, *rest

    with_hub.keeps_hub = True  # type: ignore[attr-defined]
    manager.objective, manager.load_trial = with_hub, without_policy_kwargs
    manager._preprocess_hyperparams = with_drawn


keep_hub_in_searches()
