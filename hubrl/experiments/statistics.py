"""Interquartile means and bootstrap intervals over runs, as the field reports them.

Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

MIN_RUNS = 3
"""Runs from which an interval is shown."""

SMALL = 10.0
"""Size from which a mean and its interval are shown as whole numbers."""

Values = Sequence[float] | Float[np.ndarray, " runs"]


class Estimate(NamedTuple):
    """A mean over runs and the 95 % interval of a bootstrap."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def from_samples(
        cls, value: float, samples: Float[np.ndarray, " samples"], n: int
    ) -> "Estimate":
        """An estimate whose interval holds the middle 95 % of some bootstrap samples."""
        low, high = np.quantile(samples, [0.025, 0.975])
        return cls(value, float(low), float(high), n)

    def __str__(self) -> str:
        # Rates of success lie between 0 and 1, where whole numbers would all be the same.
        small = max(abs(self.value), abs(self.low), abs(self.high)) < SMALL
        value, low, high = (f"{one:.3g}" if small else f"{one:.0f}" for one in self[:3])
        return f"{value} ({low}, {high})" if self.n >= MIN_RUNS else value


def iqm(values: Float[np.ndarray, "*batch runs"]) -> Float[np.ndarray, "*batch"]:
    """Mean of the middle half, along the last axis."""
    trimmed: np.ndarray = stats.trim_mean(values, 0.25, axis=-1)
    return trimmed


def mean_return(values: Values) -> float:
    """Interquartile mean of some runs' returns."""
    return float(iqm(np.asarray(values, dtype=float)))


def resampled(values: Values, seed: int = 0) -> Float[np.ndarray, " samples"]:
    """Interquartile means of bootstrap samples of some runs."""
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=float)
    return iqm(array[rng.integers(len(array), size=(RESAMPLES, len(array)))])


def estimate(values: Values) -> Estimate:
    """Interquartile mean over runs with its interval."""
    return Estimate.from_samples(mean_return(values), resampled(values), len(values))


def difference(one: Values, other: Values) -> Estimate:
    """Difference of two methods' interquartile means, with its interval."""
    samples = resampled(one) - resampled(other, seed=1)
    return Estimate.from_samples(
        mean_return(one) - mean_return(other), samples, min(len(one), len(other))
    )


def stratified(by_target: Sequence[Values]) -> Estimate:
    """Mean over targets of the mean over runs; the bootstrap draws runs within each target."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(runs, dtype=float) for runs in by_target]
    drawn = [
        runs[rng.integers(len(runs), size=(RESAMPLES, len(runs)))].mean(axis=1) for runs in arrays
    ]
    mean = float(np.mean([runs.mean() for runs in arrays]))
    return Estimate.from_samples(
        mean, np.stack(drawn).mean(axis=0), min(len(runs) for runs in arrays)
    )
