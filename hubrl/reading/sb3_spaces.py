"""Spaces from the text that SB3 prints of them into a zip's JSON.

The JSON also holds each space as a pickle; that is never opened. Bounds are printed with eight
digits, and long ones are elided in the middle: elided bounds are accepted where every number shown
is the same, and otherwise widened to the range shown.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from hubrl.errors import BadFile
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.spaces import SpaceDict, binary_sizes

PART_LETTERS = 4096
"""Letters of one part of a space, as SB3 prints it; greater arrays are elided."""

_NUMBER = re.compile(r"-?inf|-?\d+\.?\d*(?:e[+-]?\d+)?|True|False")
_PART = re.compile(
    r"""(['"])((?:(?!\1).)+)\1,?:?\s*(Box|Discrete|MultiDiscrete|MultiBinary|Dict)\("""
)


def parse_space(printed: Any, what: str, limits: Limits = DEFAULT_LIMITS) -> SpaceDict:
    """Plain data of a space from a zip's JSON.

    Args:
        printed: The JSON object of the space.
        what: Noun for the space in the message, as 'action space'.
        limits: Limits on its numbers.

    Raises:
        BadFile: If it is missing or of a type that hubrl does not support.
    """
    if not isinstance(printed, dict) or not isinstance(printed.get(":type:"), str):
        raise BadFile(f"The file holds no {what}.")
    kind = printed[":type:"].rsplit(".", 1)[-1].strip("'> ")
    try:
        text = max(
            (len(str(printed.get(end))) for end in ("spaces", "low", "high", "nvec")), default=0
        )
        if text > limits.space_parts * PART_LETTERS:
            raise ValueError(f"it is described by {text} letters")  # noqa: TRY301 - one sentence for all of them
        return _parse(kind[:40], printed)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BadFile(
            f"The {what} in the file, a {kind}, cannot be read ({repr(error)[:200]})."
        ) from error


def _parse(kind: str, printed: dict[str, Any]) -> SpaceDict:
    match kind:
        case "Box" | "CachedFeaturesSpace":
            shape = [int(n) for n in printed.get("shape") or printed["_shape"]]
            dtype = str(printed["dtype"])
            low, high = (_numbers(str(printed[end])) for end in ("low", "high"))
            return {
                "type": "Box",
                "shape": shape,
                "dtype": dtype,
                "low": _bound(low, shape, min),
                "high": _bound(high, shape, max),
            }
        case "Discrete":
            return {
                "type": "Discrete",
                "n": int(printed["n"]),
                "start": int(printed.get("start") or 0),
            }
        case "MultiDiscrete":
            return {
                "type": "MultiDiscrete",
                "nvec": [int(n) for n in _NUMBER.findall(str(printed["nvec"]))],
            }
        case "MultiBinary":
            return {"type": "MultiBinary", "n": _binary_sizes(str(printed["n"]))}
        case "Dict":
            return {"type": "Dict", "spaces": _dict_parts(str(printed["spaces"]))}
        case _:
            raise ValueError(
                f"hubrl reads Box, Discrete, MultiDiscrete, MultiBinary and Dict, not {kind}"
            )


def _dict_parts(text: str) -> dict[str, SpaceDict]:
    """The parts of a Dict space from its `repr`, in its order."""
    parts = {}
    for match in _PART.finditer(text):
        _, key, kind = match.groups()
        inside = _until_closed(text, match.end())
        parts[key] = _from_repr(kind, inside)
    if not parts:
        raise ValueError("no parts")
    return parts


def _from_repr(kind: str, inside: str) -> SpaceDict:
    match kind:
        case "Box" if re.fullmatch(r"[\d, ]+", inside):
            return _box_of_gym_017([int(n) for n in re.findall(r"\d+", inside)])
        case "Box":
            found = re.fullmatch(r"(.*), (\([\d, ]*\)), (\w+)", inside, re.DOTALL)
            if found is None:
                raise ValueError(inside)
            bounds, shape_text, dtype = found.groups()
            shape = [int(n) for n in re.findall(r"\d+", shape_text)]
            low, high = (_numbers(bound) for bound in _split_bounds(bounds))
            return {
                "type": "Box",
                "shape": shape,
                "dtype": dtype,
                "low": _bound(low, shape, min),
                "high": _bound(high, shape, max),
            }
        case "Discrete":
            n, _, start = inside.partition(", start=")
            return {"type": kind, "n": int(n), "start": int(start or 0)}
        case "MultiBinary":
            return {"type": kind, "n": _binary_sizes(inside)}
        case "MultiDiscrete":
            return {
                "type": kind,
                "nvec": [int(n) for n in re.findall(r"\d+", inside.partition("start=")[0])],
            }
        case _:
            raise ValueError("a Dict inside a Dict")


def _binary_sizes(text: str) -> int | list[int]:
    return binary_sizes([int(n) for n in re.findall(r"-?\d+", text)])


def _box_of_gym_017(shape: list[int]) -> SpaceDict:
    """A Box that gym 0.17.0 to 0.17.2 printed in a Dict, without bounds and dtype."""
    if len(shape) > 1:
        raise ValueError(
            "gym 0.17.0 to 0.17.2 printed neither dtype nor bounds of pictures; save the agent "
            "under a newer gym"
        )
    return {"type": "Box", "shape": shape, "dtype": "float32", "low": "-inf", "high": "inf"}


def _split_bounds(text: str) -> tuple[str, str]:
    """The two bounds at the start of a Box's `repr`: two numbers or two bracketed arrays."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            return text[:position], text[position + 1 :]
    raise ValueError(text)


def _until_closed(text: str, start: int) -> str:
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return text[start:position]
    raise ValueError("unbalanced parentheses")


def _numbers(text: str) -> list[float]:
    bits = {"True": 1.0, "False": 0.0}
    numbers = [float(bits.get(number, number)) for number in _NUMBER.findall(text)]
    if not numbers:
        raise ValueError(f"no bound in {text[:40]!r}")
    return numbers


def _bound(numbers: list[float], shape: list[int], widest: Callable[[list[float]], float]) -> Any:
    if len(set(numbers)) == 1:
        return _finite(numbers[0])
    if len(numbers) != math.prod(shape):
        return _finite(widest(numbers))
    return np.array([_finite(number) for number in numbers], dtype=object).reshape(shape).tolist()


def _finite(number: float) -> float | str:
    return number if np.isfinite(number) else str(number)
