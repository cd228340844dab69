"""The statistics of VecNormalize, from a pickle file that is parsed and never executed.

An unpickler runs whatever its file names. This one knows a handful of names, all of them data: for every other name in
`ALLOWED_MODULES` it builds an inert `Record`, and anything else is refused.
"""

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hubrl.errors import BadFile
from hubrl.sources.preprocessing import Statistics

MAX_BYTES = 64 * 2**20


class VecNormalizeStatistics(NamedTuple):
    """VecNormalize's treatment of observations."""

    statistics: Statistics | None
    """Mean and variance by key (one empty key for a plain observation); none if observations were left alone."""
    clip: float
    epsilon: float


class Record:
    """An object of an allowed class, as its attributes and arguments; it does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        """Make one, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes as they are."""
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Swallow an item (ordered dictionaries of spaces)."""
        self.__dict__.setdefault("items", {})[key] = value

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        return self.__dict__.get(name)


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")

ALLOWED_RECORDS = {
    ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
    ("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
    ("hubrl", "CachedFeaturesSpace"),
    ("numpy.random._pickle", "__randomstate_ctor"),
    ("numpy.random._pickle", "__generator_ctor"),
    ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
    ("numpy.random.bit_generator", "SeedSequence"),
    ("numpy.random._pcg64", "PCG64"),
    ("numpy.random._mt19937", "MT19937"),
    *(
        (f"{package}.spaces.{module}", name)
        for package in ("gym", "gymnasium")
        for module, name in (
            ("box", "Box"),
            ("dict", "Dict"),
            ("discrete", "Discrete"),
            ("multi_discrete", "MultiDiscrete"),
            ("multi_binary", "MultiBinary"),
        )
    ),
}


def _buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(bytes(data), dtype=dtype).reshape(shape, order=order)


class _Reader(pickle.Unpickler):
    """Knows arrays, scalars and inert records."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve an allowed name, refuse every other."""
        match module, name:
            case "numpy", "dtype" | "ndarray":
                return getattr(np, name)
            case _, "_reconstruct" if module in _ARRAY_MODULES:
                return _rebuild
            case _, "scalar" if module in _ARRAY_MODULES:
                return _scalar
            case "numpy._core.numeric" | "numpy.core.numeric", "_frombuffer":
                return _buffer
            case "numpy", "bool_" | "bool" | "float16" | "float32" | "float64" | "int64" | "uint8":
                return getattr(np, name)
            case "collections", "OrderedDict":
                return Record
            case _ if (module, name) in ALLOWED_RECORDS:
                return Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which statistics do not need")


def _rebuild(cls: Any, shape: Any, code: Any) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=dtype)[0]


def read_statistics(path: Path) -> VecNormalizeStatistics:
    """Read `vecnormalize.pkl` without executing it.

    Raises:
        BadFile: If it is missing, damaged, not a VecNormalize, or names anything that statistics do not need.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadFile(f"There is no readable file of statistics {path}.") from error
    if len(raw) > MAX_BYTES:
        raise BadFile(f"{path} has {len(raw)} bytes, statistics have fewer than {MAX_BYTES}.")
    try:
        read = _Reader(io.BytesIO(raw)).load()
    except Exception as error:
        raise BadFile(f"{path} was refused as statistics of VecNormalize: {error}.") from error
    if not isinstance(read, Record) or "norm_obs" not in read.__dict__:
        raise BadFile(f"{path} holds no VecNormalize.")
    try:
        return _statistics(read, path)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadFile(f"{path} holds a VecNormalize without statistics ({error}).") from error


def _statistics(read: Record, path: Path) -> VecNormalizeStatistics:
    clip, epsilon = float(read.get("clip_obs")), float(read.get("epsilon"))
    if not (clip > 0 and 0 <= epsilon < np.inf):
        raise BadFile(f"{path} clips at {clip} with an epsilon of {epsilon}; expected both to be positive.")
    means = read.get("obs_rms")
    if not read.get("norm_obs") or means is None:
        return VecNormalizeStatistics(None, clip, epsilon)
    by_key = means if isinstance(means, dict) else {"": means}
    statistics = {}
    for key, rms in by_key.items():
        mean, var = (np.asarray(rms.get(name), dtype=float) for name in ("mean", "var"))
        if mean.shape != var.shape or not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
            raise BadFile(f"{path} holds statistics that are not finite.")
        statistics[str(key)] = (mean, var)
    return VecNormalizeStatistics(statistics, clip, epsilon)
