"""Racing by standard errors: who is clearly worse than the best, from returns alone."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

STANDARD_ERRORS = 2.0

Returns = dict[str, list[float]]


def behind(one: Sequence[float], other: Sequence[float]) -> float:
    """By how many standard errors the mean of one sample lies below that of another (Welch).

    Zero when the means are equal or either sample has fewer than two members; infinite when neither varies.
    """
    if min(len(one), len(other)) < 2:
        return 0.0
    gap = float(np.mean(other) - np.mean(one))
    error = math.sqrt(np.var(one, ddof=1) / len(one) + np.var(other, ddof=1) / len(other))
    if error == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / error


def still_racing(returns: Mapping[str, Sequence[float]]) -> list[str]:
    """The pathways that are not clearly worse than the best; in the order given."""
    best = max(returns, key=lambda name: float(np.mean(returns[name])) if returns[name] else -math.inf)
    return [name for name in returns if behind(returns[name], returns[best]) <= STANDARD_ERRORS]
