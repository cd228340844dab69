"""The content of an SB3 zip or saved policy: plain JSON and weights, opened without unpickling."""

import io
from pathlib import Path
from typing import Any

from hubrl.errors import BadFile
from hubrl.formats.cached_space import observed_space_dict
from hubrl.formats.files import read_file
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.schema import parse_json
from hubrl.formats.spaces import SpaceDict, space_from_dict
from hubrl.reading.saved_policy import describe_policy, read_space
from hubrl.reading.sb3_spaces import parse_space
from hubrl.reading.sb3_weights import OWN_NETWORK
from hubrl.reading.weights import parse_saved_policy, parse_torch
from hubrl.reading.zip_members import ZipMembers

ON_POLICY = "on-policy"

FAMILIES = {
    "stable_baselines3.common.policies": ON_POLICY,
    "sb3_contrib.common.maskable.policies": "MaskablePPO",
    "stable_baselines3.dqn.policies": "DQN",
    "stable_baselines3.sac.policies": "SAC",
    "stable_baselines3.td3.policies": "TD3",
    "sb3_contrib.qrdqn.policies": "QRDQN",
    "sb3_contrib.tqc.policies": "TQC",
}

HUB_POLICY, HUB_DQN = "hubrl.HubActorCriticPolicy", "hubrl.HubDQNPolicy"
"""`plain_module` of the policies over a hub's outputs."""

SBX_POLICY = b'"__module__": "sbx.'
"""Bytes in the data of SB3's port to JAX."""

OWN_MODULE = "hubrl"
"""Module of hubrl's own policies; their `plain_module` names the SB3 policy they are read as."""

ACTIVATION_NAMES = {
    "Tanh": "tanh",
    "ReLU": "relu",
    "ELU": "elu",
    "GELU": "gelu",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "Sigmoid": "sigmoid",
    "Mish": "mish",
    "Softplus": "softplus",
    "SELU": "selu",
    "Identity": "identity",
}


class Archive:
    """An SB3 zip, opened without unpickling anything.

    Raises:
        BadFile: If it is missing, damaged, or not an SB3 zip.
    """

    def __init__(self, path: Path | io.BytesIO, name: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = path if isinstance(path, Path) else f"the model {name!r}"
        self.limits = limits
        self.data: dict[str, Any] = {}
        content = read_file(path, limits.file_bytes) if isinstance(path, Path) else path.getvalue()
        self.spaces: dict[str, Any] = {}
        policy = parse_saved_policy(content, str(self.path), limits)
        if policy is not None:
            arguments, self.tensors = policy
            self.data = describe_policy(arguments, self.tensors, str(self.path))
            self.spaces = {
                which: arguments.get(f"{which}_space") for which in ("observation", "action")
            }
            return
        try:
            data, raw = _unzip(content, str(self.path), limits)
            self.data = parse_json(data, limits)
        except BadFile:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise BadFile(
                f"{self.path} is damaged or not an SB3 zip ({str(error)[:160]})."
            ) from error
        if not isinstance(self.data, dict):
            raise BadFile(f"{self.path} is not an SB3 zip: its data is not an object.")
        self.tensors = parse_torch(raw, str(self.path), limits)

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """The policy's keyword arguments, as far as they are plain."""
        kwargs = self.data.get("policy_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    @property
    def hub(self) -> dict[str, Any] | None:
        """The hub whose features the agent learned from, as plain data."""
        kwargs = self.policy_kwargs.get("features_extractor_kwargs")
        hub = kwargs.get("hub") if isinstance(kwargs, dict) else None
        return hub if isinstance(hub, dict) else None

    @property
    def policy_module(self) -> str:
        """The module that the policy's class came from, as text."""
        policy = self.data.get("policy_class")
        if not isinstance(policy, dict):
            return ""
        module = str(policy.get("__module__") or _module_in_type(policy))[:200]
        return str(policy.get("plain_module")) if module == OWN_MODULE else module

    @property
    def algorithm(self) -> str:
        """The algorithm, by the policy's module and by hyperparameters that are unique to it.

        Raises:
            BadFile: If it is one that hubrl does not read.
        """
        if self.policy_module in (HUB_POLICY, HUB_DQN):
            return "DQN" if self.policy_module == HUB_DQN else self._on_policy()
        family = FAMILIES.get(self.policy_module)
        if family is None:
            named = (
                f"policy of module {self.policy_module!r}"
                if self.policy_module
                else "policy it does not name"
            )
            raise BadFile(
                f"{self.path} holds a {named}; hubrl reads PPO, A2C, TRPO, MaskablePPO, DQN, "
                f"QR-DQN, SAC, TD3, DDPG and TQC. For another, {OWN_NETWORK}."
            )
        if family == ON_POLICY:
            return self._on_policy()
        return "DDPG" if family == "TD3" and self.policy_kwargs.get("n_critics") == 1 else family

    def _on_policy(self) -> str:
        if "cg_max_steps" in self.data:
            return "TRPO"
        return "PPO" if "clip_range" in self.data else "A2C"

    @property
    def activation(self) -> str:
        """The activation of the hidden layers, in hubrl's names.

        Raises:
            BadFile: If hubrl does not have it.
        """
        given = self.policy_kwargs.get("activation_fn")
        if given is None:
            return "tanh" if self.algorithm in ("PPO", "A2C", "TRPO", "MaskablePPO") else "relu"
        printed = class_name(given)
        name = printed.rsplit(".", 1)[-1]
        if name not in ACTIVATION_NAMES or not printed.startswith("torch.nn."):
            raise BadFile(
                f"{self.path} has the activation {printed}; hubrl declares "
                f"{', '.join(ACTIVATION_NAMES)}. For another, {OWN_NETWORK}."
            )
        return ACTIVATION_NAMES[name]

    def space(self, which: str) -> SpaceDict:
        """The `observation` or `action` space, as plain data and without cached features."""
        if self.spaces:
            read = read_space(self.spaces[which])
            space_from_dict(read, self.limits)
            return read
        printed = self.data.get(f"{which}_space")
        space = parse_space(printed, f"{which} space", self.limits)
        space_from_dict(space, self.limits)
        cached = which == "observation" and self.hub is not None and self.hub.get("cached") is True
        return observed_space_dict(printed, space) if cached else space


def _unzip(raw: bytes, where: str, limits: Limits) -> tuple[bytes, bytes]:
    members = ZipMembers(raw, where, limits)
    missing = {"data", "policy.pth"} - set(members.names)
    if missing == {"policy.pth"} and SBX_POLICY in members.read("data"):
        raise BadFile(
            f"{where} is an agent of SBX, whose networks are JAX's; hubrl reads torch's. Make a "
            "hubrl.Source from torch modules with its weights instead."
        )
    if missing:
        raise BadFile(
            f"{where} is a zip without {' and '.join(sorted(missing))}; SB3 saves both in an "
            "agent's zip."
        )
    return members.read("data"), members.read("policy.pth")


def _module_in_type(policy: dict[str, Any]) -> str:
    return class_name(policy.get(":type:", "")).rpartition(".")[0]


def class_name(printed: Any) -> str:
    """`module.Name` from `<class 'module.Name'>`."""
    return str(printed)[:200].removeprefix("<class '").removesuffix("'>")
