"""Gymnasium spaces as plain data, and whether one fits another."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

from hubrl.errors import BadFile

SpaceDict = dict[str, Any]

MAX_NUMBERS = 2**26
"""Greatest number of entries of a space; a file with more is refused before memory is allocated."""


def space_to_dict(space: spaces.Space[Any]) -> SpaceDict:
    """A space as plain data that YAML and JSON can hold.

    Bounds that are the same everywhere are written once. `inf` is written as the string "inf".

    Raises:
        BadFile: If the space is of a type that hubrl does not know.
    """
    match space:
        case spaces.Dict():
            return {"type": "Dict", "spaces": {key: space_to_dict(part) for key, part in space.spaces.items()}}
        case spaces.Box():
            bounds = {"low": _bound(space.low), "high": _bound(space.high)}
            return {"type": "Box", "shape": [int(n) for n in space.shape], "dtype": str(space.dtype), **bounds}
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete() if len(space.shape) == 1:
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary() if len(space.shape) == 1:
            return {"type": "MultiBinary", "n": int(space.shape[0])}
        case _:
            raise BadFile(
                f"A {type(space).__name__} space of shape {space.shape} was given; "
                "hubrl reads Box, Discrete, Dict, and MultiDiscrete and MultiBinary of one axis."
            )


def space_from_dict(plain: SpaceDict) -> spaces.Space[Any]:
    """The space that `space_to_dict` wrote.

    Raises:
        BadFile: If the data does not describe a space.
    """
    try:
        return _from_plain(plain)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, RecursionError) as error:
        raise BadFile(f"{plain!r} does not describe a space ({error!r}).") from error


def _from_plain(plain: SpaceDict) -> spaces.Space[Any]:
    match plain["type"]:
        case "Dict":
            # An OrderedDict keeps its order; Gymnasium sorts any other mapping.
            return spaces.Dict(OrderedDict((key, _from_plain(part)) for key, part in plain["spaces"].items()))
        case "Box":
            shape, dtype = tuple(plain["shape"]), np.dtype(plain["dtype"])
            _check_size(math.prod(shape))
            low, high = (np.broadcast_to(np.array(plain[end], dtype=float), shape) for end in ("low", "high"))
            return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
        case "Discrete":
            _check_size(int(plain["n"]))
            return spaces.Discrete(int(plain["n"]), start=int(plain.get("start", 0)))
        case "MultiDiscrete":
            _check_size(sum(plain["nvec"]))
            return spaces.MultiDiscrete(np.array(plain["nvec"]))
        case "MultiBinary":
            _check_size(int(plain["n"]))
            return spaces.MultiBinary(int(plain["n"]))
        case other:
            raise ValueError(other)


def _check_size(numbers: int) -> None:
    if not 0 < numbers <= MAX_NUMBERS:
        raise ValueError(f"{numbers} numbers, expected 1 to {MAX_NUMBERS}")


def describe(space: spaces.Space[Any]) -> str:
    """A space in a few words, bounds left out: `Box(17,)`, `Discrete(4)`, `Dict(image: Box(3, 64, 64))`."""
    match space:
        case spaces.Dict():
            return f"Dict({', '.join(f'{key}: {describe(part)}' for key, part in space.spaces.items())})"
        case spaces.Box():
            return f"Box{tuple(int(n) for n in space.shape)}"
        case spaces.Discrete():
            return f"Discrete({int(space.n)})"
        case spaces.MultiDiscrete():
            return f"MultiDiscrete{tuple(space.nvec.tolist())}"
        case spaces.MultiBinary():
            return f"MultiBinary({space.n})"
        case _:
            return str(space)


def fits(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether what belongs to one space has the type and shape of the other; bounds and the order of keys may differ."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return set(one.spaces) == set(other.spaces) and all(fits(part, other.spaces[key]) for key, part in one.spaces.items())
    return describe(one) == describe(other)


def _bound(values: np.ndarray) -> Any:
    """One number if all are equal, else a nested list; infinities as strings."""
    plain = values.astype(float)
    if plain.size and np.all(plain == plain.flat[0]):
        return _number(float(plain.flat[0]))
    return _nested(plain.tolist())


def _nested(values: Any) -> Any:
    return [_nested(value) for value in values] if isinstance(values, list) else _number(values)


def _number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
