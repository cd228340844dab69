"""Statistics of returns: how far one mean lies behind another, and where a trend leads."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def welch_lag(one: Sequence[float], other: Sequence[float]) -> float:
    """Standard errors by which the mean of `one` lies below that of `other` (Welch 1947).

    Zero when the means are equal or a sample has fewer than two members; infinite when neither
    sample varies.
    """
    if min(len(one), len(other)) < 2:
        return 0.0
    gap = float(np.mean(other) - np.mean(one))
    error = math.sqrt(_squared_error(one) + _squared_error(other))
    if error == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / error


def standard_error(sample: Sequence[float]) -> float:
    """Standard error of the mean; infinite for fewer than two members."""
    return math.sqrt(_squared_error(sample)) if len(sample) > 1 else math.inf


def corrected_lag(one: Sequence[float], other: Sequence[float]) -> float:
    """`welch_lag` of small samples, as the standard normal deviate that is as unlikely.

    Welch's t with Satterthwaite's degrees of freedom under Wallace's (1959) transformation to a
    normal deviate, within 4 % where each sample has at least three members.
    """
    lag = welch_lag(one, other)
    if lag == 0.0 or math.isinf(lag):
        return lag
    squared = [_squared_error(sample) for sample in (one, other)]
    parts = zip(squared, (one, other), strict=True)
    freedom = sum(squared) ** 2 / sum(error**2 / (len(sample) - 1) for error, sample in parts)
    shrunk = (
        (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(lag**2 / freedom))
    )
    return math.copysign(shrunk, lag)


def conservative_lag(
    one: Sequence[float], other: Sequence[float], spread: Sequence[float] = ()
) -> float:
    """`welch_lag` with the greatest variance of both samples and of a third, for both.

    What does nothing earns the same every time; its small spread says nothing of how much is left
    to chance.
    """
    if min(len(one), len(other)) < 2:
        return 0.0
    gap = float(np.mean(other) - np.mean(one))
    variance = max(float(np.var(sample, ddof=1)) for sample in (one, other, spread or one))
    error = math.sqrt(variance * (1 / len(one) + 1 / len(other)))
    if error == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / error


def extrapolate_return(
    when: Float[np.ndarray, " episodes"], returns: Float[np.ndarray, " episodes"], at: float
) -> tuple[float, float]:
    """Return at a later time by a least-squares line, and what it could be at most.

    The first is the mean where no slope is clear beyond two standard errors, and the second follows
    a slope that is two standard errors greater; infinite where no slope can be measured.

    Args:
        when: Time at which each episode ended, in any unit.
        returns: Return of each episode.
        at: Time that is asked about, in the same unit.
    """
    count, mean = len(when), float(returns.mean())
    spread = float(np.square(when - when.mean()).sum())
    if count < 3 or spread == 0.0:
        return mean, math.inf
    slope = float(((when - when.mean()) * (returns - mean)).sum()) / spread
    residuals = returns - mean - slope * (when - when.mean())
    margin = 2.0 * math.sqrt(float(np.square(residuals).sum()) / (count - 2) / spread)
    ahead = at - float(when.mean())
    expected = mean + slope * ahead if abs(slope) > margin else mean
    return expected, mean + (slope + margin) * ahead


def better_half(returns: Sequence[float]) -> list[float]:
    """The greater half of some returns, the median included."""
    return sorted(returns)[len(returns) // 2 :]


def _squared_error(sample: Sequence[float]) -> float:
    return float(np.var(sample, ddof=1)) / len(sample)
