"""Gymnasium spaces as plain data, and comparisons of two spaces."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from hubrl.errors import BadFile
from hubrl.formats.limits import DEFAULT_LIMITS, Limits

SpaceDict = dict[str, Any]

DTYPES = frozenset(
    (
        "bool",
        "float16",
        "float32",
        "float64",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)
"""Dtypes of a Box, by numpy's names."""

MAX_AXES = 8
"""Greatest number of axes of a Box."""


def space_to_dict(space: spaces.Space[Any]) -> SpaceDict:
    """A space as plain data that YAML and JSON can hold.

    Bounds that are the same everywhere are written once. `inf` is written as the string "inf".

    Raises:
        BadFile: If the space is of a type that hubrl does not support.
    """
    match space:
        case spaces.Dict():
            return {
                "type": "Dict",
                "spaces": {key: space_to_dict(part) for key, part in space.spaces.items()},
            }
        case spaces.Box():
            bounds = {"low": _bound(space.low), "high": _bound(space.high)}
            return {
                "type": "Box",
                "shape": [int(n) for n in space.shape],
                "dtype": str(space.dtype),
                **bounds,
            }
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete() if len(space.shape) == 1:
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": binary_sizes(space.shape)}
        case _:
            raise BadFile(
                f"A {type(space).__name__} space of shape {space.shape} was given; "
                "hubrl reads Box, Discrete, MultiBinary, Dict, and MultiDiscrete of one axis."
            )


def binary_sizes(shape: Sequence[int]) -> int | list[int]:
    """A MultiBinary's `n` as plain data: the number of bits, or its axes if it has several."""
    return int(shape[0]) if len(shape) == 1 else [int(n) for n in shape]


def space_from_dict(plain: SpaceDict, limits: Limits = DEFAULT_LIMITS) -> spaces.Space[Any]:
    """The space that `space_to_dict` wrote.

    Raises:
        BadFile: If the data does not describe a space, or one that exceeds a limit.
    """
    try:
        _check_size(plain, limits)
        return _from_dict(plain)
    except _SPACE_ERRORS as error:
        shown = repr(plain) if len(str(plain)) < 300 else f"{str(plain)[:300]}..."
        raise BadFile(f"{shown} does not describe a space ({str(error)[:200]!r}).") from error


_SPACE_ERRORS = (
    KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


def _from_dict(plain: SpaceDict) -> spaces.Space[Any]:
    match plain["type"]:
        case "Dict":
            # An OrderedDict keeps its order; Gymnasium sorts any other mapping.
            parts = ((key, _from_dict(part)) for key, part in plain["spaces"].items())
            return spaces.Dict(OrderedDict(parts))
        case "Box":
            shape, dtype = tuple(plain["shape"]), np.dtype(plain["dtype"])
            bounds = (np.array(plain[end], dtype=float) for end in ("low", "high"))
            low, high = (np.broadcast_to(bound, shape) for bound in bounds)
            if not (low <= high).all():
                raise ValueError("bounds that are NaN, or lower above upper")
            return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
        case "Discrete":
            return spaces.Discrete(int(plain["n"]), start=int(plain.get("start", 0)))
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(plain["nvec"]))
        case "MultiBinary":
            n = plain["n"]
            return spaces.MultiBinary([int(size) for size in n] if isinstance(n, list) else int(n))
        case other:
            raise ValueError(other)


def _check_size(plain: SpaceDict, limits: Limits) -> None:
    """Refuse a space whose numbers exceed the limits, before one of them is allocated."""
    numbers = _count_numbers(plain, limits)
    if not 0 < numbers <= limits.space_numbers:
        raise ValueError(f"{numbers} numbers, expected 1 to {limits.space_numbers}")


def _count_numbers(plain: SpaceDict, limits: Limits) -> int:
    kind = plain["type"]
    if kind == "Dict":
        _check_parts(len(plain["spaces"]), limits)
        counts = [_count_numbers(part, limits) for part in plain["spaces"].values()]
        return sum(counts) if all(count > 0 for count in counts) else 0
    if kind == "Box":
        if len(plain["shape"]) > MAX_AXES or plain["dtype"] not in DTYPES:
            dtype = str(plain["dtype"])[:40]
            raise ValueError(
                f"a Box of {len(plain['shape'])} axes and dtype {dtype}, expected at most "
                f"{MAX_AXES} of numbers"
            )
        return math.prod(_whole(n) for n in plain["shape"])
    if kind == "MultiDiscrete":
        _check_parts(len(plain["nvec"]), limits)
        return sum(_whole(n) for n in plain["nvec"]) if min(plain["nvec"], default=0) > 0 else 0
    if isinstance(plain["n"], list):
        if not 1 < len(plain["n"]) <= MAX_AXES:
            raise ValueError(f"a MultiBinary of {len(plain['n'])} axes")
        return math.prod(_whole(n) for n in plain["n"])
    return int(plain["n"])


def _check_parts(parts: int, limits: Limits) -> None:
    if parts > limits.space_parts:
        raise ValueError(f"{parts} parts, expected at most {limits.space_parts}")


def _whole(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number


def describe(space: spaces.Space[Any]) -> str:
    """A short text without bounds: `Box(17,)`, `Discrete(4)`, `Dict(image: Box(3, 64, 64))`."""
    match space:
        case spaces.Dict():
            parts = (f"{key}: {describe(part)}" for key, part in space.spaces.items())
            return f"Dict({', '.join(parts)})"
        case spaces.Box():
            return f"Box{tuple(int(n) for n in space.shape)}"
        case spaces.Discrete():
            return f"Discrete({int(space.n)})"
        case spaces.MultiDiscrete():
            return f"MultiDiscrete{tuple(space.nvec.tolist())}"
        case spaces.MultiBinary():
            return f"MultiBinary({binary_sizes(space.shape)})"
        case _:
            return str(space)


def fits(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether two spaces have the same type and shape; bounds and the order of keys may differ."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return set(one.spaces) == set(other.spaces) and all(
            fits(part, other.spaces[key]) for key, part in one.spaces.items()
        )
    return describe(one) == describe(other)


def differing_bounds(one: spaces.Space[Any], other: spaces.Space[Any]) -> tuple[str, str] | None:
    """Bounds of the first entry in which two Boxes differ, as `-2 to 2`; None if equal."""
    if not isinstance(one, spaces.Box) or not isinstance(other, spaces.Box):
        return None
    pairs = ((one.low, other.low), (one.high, other.high))
    same = np.logical_and(*(np.isclose(mine, theirs, rtol=1e-5).ravel() for mine, theirs in pairs))
    if same.all():
        return None
    entry = int(np.argmin(same))
    mine, theirs = (
        f"{space.low.flat[entry]:g} to {space.high.flat[entry]:g}" for space in (one, other)
    )
    return mine, theirs


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
