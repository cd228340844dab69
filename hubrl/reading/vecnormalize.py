"""The statistics of VecNormalize, from a pickle file that is read as data and never executed."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hubrl.errors import BadFile
from hubrl.formats.files import read_file
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.reading.arrays import read_array
from hubrl.reading.pickle_data import Call, Name, Pairs, parse_pickle
from hubrl.sources.preprocessing import Statistics


class VecNormalizeStatistics(NamedTuple):
    """VecNormalize's treatment of observations."""

    statistics: Statistics | None
    """Mean and variance by key (one empty key for a plain observation); none if observations were
    left alone."""
    clip: float
    epsilon: float


_SPACES = (
    ("box", "Box"),
    ("dict", "Dict"),
    ("discrete", "Discrete"),
    ("multi_discrete", "MultiDiscrete"),
    ("multi_binary", "MultiBinary"),
)

_RECONSTRUCT, _SCALAR, _BUFFER = "_reconstruct", "scalar", "_frombuffer"

ALLOWED = {
    Name("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
    Name("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
    Name("hubrl", "CachedFeaturesSpace"),
    Name("collections", "OrderedDict"),
    Name("_codecs", "encode"),
    Name("copyreg", "_reconstructor"),
    Name("copy_reg", "_reconstructor"),
    Name("builtins", "object"),
    Name("__builtin__", "object"),
    *(Name("numpy", name) for name in ("dtype", "ndarray", "bool_", "bool")),
    *(Name("numpy", name) for name in ("float16", "float32", "float64", "int64", "uint8")),
    *(
        Name(f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", _RECONSTRUCT),
            ("multiarray", _SCALAR),
            ("numeric", _BUFFER),
        )
    ),
    *(
        Name("numpy.random._pickle", f"__{kind}_ctor")
        for kind in ("randomstate", "generator", "bit_generator")
    ),
    Name("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
    Name("numpy.random.bit_generator", "SeedSequence"),
    Name("numpy.random._pcg64", "PCG64"),
    Name("numpy.random._mt19937", "MT19937"),
    *(
        Name(f"{gym}.spaces.{module}", name)
        for gym in ("gym", "gymnasium")
        for module, name in _SPACES
    ),
}
"""Names in the pickles that SB3 writes; another name is refused, and these are not resolved
either."""


def read_statistics(path: Path, limits: Limits = DEFAULT_LIMITS) -> VecNormalizeStatistics:
    """Read `vecnormalize.pkl` without executing it.

    Raises:
        BadFile: If it is missing, damaged, not a VecNormalize, or names anything that statistics do
            not need.
    """
    raw = read_file(path, limits.pickle_bytes, "readable file of statistics")
    try:
        read = parse_pickle(raw, ALLOWED, limits)
    except (ValueError, MemoryError) as error:
        raise BadFile(
            f"{path} was refused as statistics of VecNormalize: {str(error)[:160]}."
        ) from error
    if not isinstance(read, Call) or "norm_obs" not in read.attributes():
        raise BadFile(f"{path} holds no VecNormalize.")
    try:
        return _statistics(read.attributes(), path)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise BadFile(
            f"{path} holds a VecNormalize without statistics ({str(error)[:160]})."
        ) from error


def _statistics(attributes: dict[str, Any], path: Path) -> VecNormalizeStatistics:
    clip, epsilon = (float(read_array(attributes.get(name))) for name in ("clip_obs", "epsilon"))
    if not (clip > 0 and 0 <= epsilon < np.inf):
        raise BadFile(
            f"{path} clips at {clip} with an epsilon of {epsilon}; expected both to be positive."
        )
    means = attributes.get("obs_rms")
    if not read_array(attributes["norm_obs"]) or means is None:
        return VecNormalizeStatistics(None, clip, epsilon)
    statistics: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key, rms in _by_key(means).items():
        mean, var = (
            read_array(rms.attributes().get(name)).astype(float) for name in ("mean", "var")
        )
        if mean.shape != var.shape or not _usable(mean, var, epsilon):
            raise BadFile(f"{path} holds statistics that are not finite.")
        statistics[key] = (mean, var)
    if not statistics:
        raise TypeError("there are none")
    return VecNormalizeStatistics(statistics, clip, epsilon)


def _by_key(means: Any) -> dict[str, Call]:
    if isinstance(means, Call):
        if not means.items.pairs:
            return {"": means}
        means = means.items
    if not isinstance(means, Pairs):
        raise TypeError(f"expected records, not {type(means).__name__}")
    return means.by_text()


def _usable(mean: np.ndarray, var: np.ndarray, epsilon: float) -> bool:
    # Statistics are applied in float32 where observations are.
    numbers = np.finfo(np.float32)
    small, large = float(numbers.tiny), float(numbers.max)
    finite = (np.abs(mean) <= large).all() and (var <= large).all() and (var >= 0).all()
    return bool(finite and (np.sqrt(var + epsilon) >= small).all())
