"""Policies saved by SB3's `policy.save`: the constructor's arguments and the weights.

The file does not name the policy's class or its algorithm; both follow from the names of its
weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hubrl.errors import BadFile
from hubrl.formats.spaces import SpaceDict, binary_sizes
from hubrl.reading.arrays import read_array, read_dtype
from hubrl.reading.pickle_data import Call, Name, Pairs

FAMILY_BY_WEIGHTS = {
    "q_net.": ("stable_baselines3.dqn.policies", {}),
    "quantile_net.": ("sb3_contrib.qrdqn.policies", {}),
    "actor.latent_pi.": ("stable_baselines3.sac.policies", {}),
    "actor.mu.": ("stable_baselines3.td3.policies", {}),
    # Every actor-critic policy acts alike; `clip_range` marks PPO.
    "action_net.": ("stable_baselines3.common.policies", {"clip_range": None}),
}
"""Module of the policy and hyperparameters of its algorithm, by the beginning of a weight's
name."""


def describe_policy(
    arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    """The description that SB3 would have written into the zip of the policy's algorithm.

    Args:
        arguments: The policy's constructor's arguments, as inert data.
        tensors: Its weights.
        where: Its file, for the message.

    Raises:
        BadFile: If its class is not SB3's.
    """
    family = next(
        (
            found
            for start, found in FAMILY_BY_WEIGHTS.items()
            if any(name.startswith(start) for name in tensors)
        ),
        None,
    )
    if family is None:
        raise BadFile(
            f"{where} holds a policy that is none of SB3's; make a hubrl.Source from your own "
            "modules instead."
        )
    module, hyperparameters = family
    plain = {key: _plain(value) for key, value in arguments.items()}
    return {
        **hyperparameters,
        "policy_class": {"__module__": module},
        "policy_kwargs": {key: value for key, value in plain.items() if value is not None},
    }


def read_space(record: Any) -> SpaceDict:
    """A space of gym or gymnasium from its record in a pickle.

    Raises:
        TypeError: If it is no space that hubrl reads.
    """
    if not isinstance(record, Call) or not isinstance(record.function, Name):
        raise TypeError("a space is no record")
    kind = record.function.name if record.function.name != "_reconstructor" else _class_of(record)
    fields = record.attributes()
    match kind:
        case "Box":
            low, high = (read_array(fields[end]) for end in ("low", "high"))
            dtype = (
                read_array(fields["low"]).dtype.name
                if "dtype" not in fields
                else _dtype(fields["dtype"])
            )
            return {
                "type": kind,
                "shape": list(low.shape),
                "dtype": dtype,
                "low": _bound(low),
                "high": _bound(high),
            }
        case "Discrete":
            return {
                "type": kind,
                "n": int(read_array(fields["n"])),
                "start": int(read_array(fields.get("start", 0))),
            }
        case "MultiDiscrete":
            return {"type": kind, "nvec": [int(n) for n in read_array(fields["nvec"]).ravel()]}
        case "MultiBinary":
            n = fields["n"]
            sizes = n if isinstance(n, tuple | list) else read_array(n).ravel()
            return {"type": kind, "n": binary_sizes([int(size) for size in sizes])}
        case "Dict":
            parts = fields["spaces"]
            pairs = parts.items if isinstance(parts, Call) else parts
            return {
                "type": kind,
                "spaces": {key: read_space(part) for key, part in pairs.by_text().items()},
            }
    raise TypeError(f"hubrl reads Box, Discrete, MultiDiscrete, MultiBinary and Dict, not {kind}")


def _class_of(record: Call) -> str:
    """The class in pickles of protocols 0 and 1."""
    found = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return found.name if isinstance(found, Name) else ""


def _dtype(record: Any) -> str:
    return np.dtype(read_dtype(record)).name


def _bound(values: Any) -> Any:
    """One number if all are equal, else a nested list; infinities as text, for JSON and YAML."""
    numbers = values.astype(float)
    if numbers.size and (numbers == numbers.flat[0]).all():
        return _number(float(numbers.flat[0]))
    return _texts(numbers.tolist())


def _texts(values: Any) -> Any:
    return [_texts(value) for value in values] if isinstance(values, list) else _number(values)


def _number(value: float) -> float | str:
    return value if abs(value) != float("inf") and value == value else str(value)


def _plain(value: Any) -> Any:
    """A constructor's argument as SB3 prints it into JSON; None if no reader needs it."""
    if isinstance(value, Name):
        return f"<class '{value}'>"
    if isinstance(value, Pairs):
        return {
            key: part
            for key, part in value.by_text().items()
            if isinstance(part, bool | int | float | str)
        }
    return value if isinstance(value, bool | int | float | str) else None
