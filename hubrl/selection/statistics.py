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


def conservative_lag(
    one: Sequence[float], other: Sequence[float], spread: Sequence[float] = ()
) -> float:
    """`welch_lag` with the greatest variance of both samples and of a third, for both.

    A few returns that are alike say little of how much is left to chance: what does nothing earns
    the same every time, and what fails rarely has not failed yet.
    """
    if min(len(one), len(other)) < 2:
        return 0.0
    gap = float(np.mean(other) - np.mean(one))
    variance = max(float(np.var(sample, ddof=1)) for sample in (one, other, spread or one))
    error = math.sqrt(variance * (1 / len(one) + 1 / len(other)))
    if error == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / error


def corrected_lag(one: Sequence[float], other: Sequence[float]) -> float:
    """`conservative_lag` of small samples, as the standard normal deviate that is as unlikely.

    Student's t with the degrees of freedom of the sample that varies more, under Wallace's (1959)
    transformation to a normal deviate, within 4 % where that has at least three members.
    """
    lag = conservative_lag(one, other)
    if lag == 0.0 or math.isinf(lag):
        return lag
    freedom = len(max(one, other, key=lambda sample: float(np.var(sample, ddof=1)))) - 1
    shrunk = (
        (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(lag**2 / freedom))
    )
    return math.copysign(shrunk, lag)


def stands_out(returns: Sequence[float], among: Sequence[float], deviations: float) -> bool:
    """Whether the better half of some returns is out of the range of others.

    Its mean exceeds theirs by some of their standard deviations, however much the worse half earns:
    a source may be good for a part of the task alone.
    """
    if min(len(returns), len(among)) < 2:
        return False
    margin = deviations * float(np.std(among, ddof=1))
    return float(np.mean(better_half(returns))) > float(np.mean(among)) + margin


def extrapolate_return(
    when: Float[np.ndarray, " episodes"], returns: Float[np.ndarray, " episodes"], at: float
) -> tuple[float, float]:
    """Return at a later time by a least-squares line, and its standard error by the slope's.

    The mean where no slope is clear, that is beyond two standard errors. The error is infinite
    where no slope can be measured.

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
    error = math.sqrt(float(np.square(residuals).sum()) / (count - 2) / spread)
    ahead = at - float(when.mean())
    return mean + slope * ahead if abs(slope) > 2.0 * error else mean, error * ahead


def better_half(returns: Sequence[float]) -> list[float]:
    """The greater half of some returns, the median included."""
    return sorted(returns)[len(returns) // 2 :]


def _squared_error(sample: Sequence[float]) -> float:
    return float(np.var(sample, ddof=1)) / len(sample)
