"""Returns as evidence: who is behind whom, by how many standard errors, and where a line of returns leads."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

DISTRUST = 4.0
"""How far below the best source the router starts the fresh pathway: a weight of about 2 % beside one source."""

STANDARD_ERRORS = 2.0
"""Within which a pathway is in favour, or trusted after a probe; and beyond which a slope is one."""

RACE_ERRORS = 3.0
"""Within which a pathway stays in a race; it is looked at after every round, so that two would be exceeded by chance."""

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


def surely_behind(one: Sequence[float], other: Sequence[float]) -> float:
    """The same for samples that are small: standard errors of many samples' means that would be as unlikely.

    Welch's t, as Wallace (1959) makes a normal number of it, within 4 % where there are at least three members each.
    """
    errors = behind(one, other)
    if errors == 0.0 or math.isinf(errors):
        return errors
    parts = [float(np.var(sample, ddof=1)) / len(sample) for sample in (one, other)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (one, other), strict=True))
    shrunk = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(errors**2 / freedom))
    return math.copysign(shrunk, errors)


def errors_behind(returns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By how many standard errors each pathway lies behind the one with the greatest mean."""
    best = max(returns, key=lambda name: float(np.mean(returns[name])) if returns[name] else -math.inf)
    return {name: behind(returns[name], returns[best]) for name in returns}


def still_racing(returns: Mapping[str, Sequence[float]], errors: float = RACE_ERRORS) -> list[str]:
    """The pathways that are not clearly worse than the best; in the order given."""
    return [name for name, lag in errors_behind(returns).items() if lag <= errors]


def forecast(when: Float[np.ndarray, " episodes"], returns: Float[np.ndarray, " episodes"], at: float) -> float:
    """Where a line through returns leads; their mean, where the slope is not clearly one (two standard errors).

    Args:
        when: When each episode ended, in any unit.
        returns: What it earned.
        at: The time that is asked about.
    """
    count, mean = len(when), float(returns.mean())
    spread = float(np.square(when - when.mean()).sum())
    if count < 3 or spread == 0.0:
        return mean
    slope = float(((when - when.mean()) * (returns - mean)).sum()) / spread
    missed = returns - mean - slope * (when - when.mean())
    error = math.sqrt(float(np.square(missed).sum()) / (count - 2) / spread)
    return mean + slope * (at - float(when.mean())) if abs(slope) > STANDARD_ERRORS * error else mean
