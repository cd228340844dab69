"""What the segments of a probe say of each source: drop it, defer it, doubt it or keep it."""

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum

import numpy as np

from hubrl.selection.settings import TrustSettings
from hubrl.selection.statistics import better_half, conservative_lag, stands_out, welch_lag

Returns = Mapping[str, Sequence[float]]
"""Returns of the segments of every source, by name."""


class Fate(IntEnum):
    """How far a source is trusted."""

    DROPPED = 0
    """Each of its segments earned less than each of the untrained networks': not used at all."""
    DEFERRED = 1
    """Clearly worse than the best source, less than half of its gain: no whole episodes early in
    the training."""
    DOUBTED = 2
    """Not clearly better than untrained networks: whole episodes decide."""
    KEPT = 3
    """Clearly better than untrained networks."""
    SET_ASIDE = 4
    """Of many sources, halved out before anything was clear: no pathway of the hub, but judged
    later in whole episodes, and then perhaps one."""


def judge_segments(
    sources: Returns, untrained: Sequence[float], settings: TrustSettings
) -> dict[str, Fate]:
    """Judge each source by the segments that it and untrained networks earned.

    Only what is clearly no better than an untrained network is dropped: by ranks, with every
    segment of the source below every untrained one. A source is kept where the better half of its
    segments exceeds the untrained mean by twice `episode_errors` (`conservative_lag`) or by as many
    standard deviations of the untrained networks; the better half, because a source may be good for
    a part of the task alone. Segments are short and show the beginning of an episode alone, so all
    between is left to whole episodes. The rule is hubrl's.

    Args:
        sources: Returns of each source's segments.
        untrained: Returns of the untrained networks' segments.
        settings: `episode_errors` is used.
    """
    return {name: _fate(name, sources, untrained, settings) for name in sources}


def _fate(name: str, sources: Returns, untrained: Sequence[float], settings: TrustSettings) -> Fate:
    own = sources[name]
    if not own or not untrained:
        return Fate.DOUBTED
    if min(len(own), len(untrained)) > 1 and max(own) < min(untrained):
        return Fate.DROPPED
    best = max((segments for segments in sources.values() if segments), key=np.mean)
    floor = float(np.mean(untrained))
    gain, most = float(np.mean(own)) - floor, float(np.mean(best)) - floor
    if welch_lag(own, best) > 2 * settings.episode_errors and gain < most / 2:
        return Fate.DEFERRED
    clear = 2 * settings.episode_errors
    is_better = conservative_lag(untrained, better_half(own)) > clear
    return Fate.KEPT if is_better or stands_out(own, untrained, clear) else Fate.DOUBTED


def start_behind(lag: float, settings: TrustSettings) -> float:
    """Where the router starts for a source that is `lag` standard errors behind the best, in nats.

    `-lag^2 / 2`, the log-likelihood that the two are level relative to its greatest; not below
    `-most_lag`.
    """
    return -min(max(lag, 0.0) ** 2 / 2, settings.most_lag)


def still_racing(returns: Returns, errors: float) -> list[str]:
    """Names whose mean is within some standard errors (Welch) of the greatest, in order."""
    best = max(returns.values(), key=lambda own: float(np.mean(own)) if own else -math.inf)
    return [name for name, own in returns.items() if welch_lag(own, best) <= errors]


def starting_points(
    returns: Returns, kept: Sequence[str], settings: TrustSettings
) -> dict[str, float]:
    """Where the router starts for each source by segments, in nats.

    Lowest for a source that is not kept.

    All start at zero where none is kept.
    """
    best = max((returns[name] for name in kept), key=lambda own: float(np.mean(own)), default=())
    lowest = -settings.most_lag if kept else 0.0
    return {
        name: start_behind(conservative_lag(returns[name], best), settings)
        if name in kept
        else lowest
        for name in returns
    }
