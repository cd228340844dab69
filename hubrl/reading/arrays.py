"""Numpy arrays from pickles read as data: plain numbers, as many as the file has bytes for."""

import math
from typing import Any

import numpy as np

from hubrl.formats.spaces import MAX_AXES
from hubrl.reading.pickle_data import Call, Name

DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
"""Codes of the dtypes that are read, without their byte order."""


def read_array(value: Any) -> np.ndarray:
    """A number or an array of numbers.

    Raises:
        TypeError: If it is neither.
        ValueError: If its bytes are not those of its shape and dtype.
    """
    if isinstance(value, bool | int | float):
        return np.asarray(float(value))
    if not isinstance(value, Call) or not isinstance(value.function, Name):
        raise TypeError(f"expected numbers, not {type(value).__name__}")
    match value.function.name, value.args, value.state:
        case "_reconstruct", _, (_, tuple() as shape, dtype, bool() as fortran, data):
            return _from_bytes(data, dtype, shape, "F" if fortran else "C")
        case "_frombuffer", (data, dtype, tuple() as shape, "C" | "F" as order), _:
            return _from_bytes(data, dtype, shape, order)
        case "scalar", (dtype, data), _:
            return _from_bytes(data, dtype, (), "C")
        case _:
            raise TypeError(f"expected numbers, not {value.function}")


def _from_bytes(data: Any, dtype: Any, shape: tuple[Any, ...], order: Any) -> np.ndarray:
    raw = _bytes(data)
    kind = np.dtype(read_dtype(dtype))
    if len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array whose shape is none")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and dtype {kind}")
    return np.frombuffer(raw, kind).reshape(shape, order=order)


def _bytes(data: Any) -> bytes:
    match data:
        case bytes() | bytearray():
            return bytes(data)
        case str():
            return data.encode("latin1")
        case Call(Name("_codecs", "encode"), (str() as text, "latin1")):
            return text.encode("latin1")
    raise TypeError(f"expected bytes, not {type(data).__name__}")


def read_dtype(dtype: Any) -> str:
    """The dtype's code with its byte order, as `<f8`."""
    match dtype:
        case Call(Name("numpy", "dtype"), (str() as code, *_), state):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
            if code in DTYPES and order in ("<", ">", "|", "="):
                return f"{order}{code}"
    raise TypeError("expected a dtype of plain numbers")
