"""Successive halving of many sources, so that a probe of any number of them has one budget.

Every source plays a short segment and the better half goes on to a longer one, until few are left
(Karnin et al. 2013; with segments that grow in place of pulls that do, Jamieson and Talwalkar
2016). That a halved source is only set aside, because one short segment proves nothing, is hubrl's.
"""

import math
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.training.segments import SEGMENT_STEPS, play_segment

FEW_SOURCES = 8
"""Sources that are tried without halving, and those that halving leaves, at most."""


class Halving(NamedTuple):
    """Rounds of segments, one of each source that was left."""

    set_aside: dict[str, float]
    """Mean return a step of each source that is not left, in its last round."""
    rounds: list[int]
    """Number of sources in each round."""
    steps: int
    """Environment steps that they took, over all parallel environments."""

    def worth(self, segment: int) -> dict[str, float]:
        """Return that each source set aside would earn at its rate in a segment of some steps."""
        return {name: rate * segment for name, rate in self.set_aside.items()}


def halve(
    policy: HubActorCriticPolicy,
    env: VecEnv,
    names: list[str],
    budget: int,
    least_behind: int,
    *,
    seed: int,
) -> Halving | None:
    """Halve sources until at most `FEW_SOURCES` are left.

    Half of the budget is spread evenly over the rounds, so that segments get longer as sources get
    fewer; where that is too little for the shortest segments, more of it.

    Args:
        policy: The policy of the pathways.
        env: The training's environments.
        names: Names of the sources.
        budget: Environment steps that the whole probe may take, over all parallel environments.
        least_behind: Segments that are to be played behind the rounds.
        seed: As of `play_segment`.

    Returns:
        The halving; None if the budget is too small.
    """
    sizes = round_sizes(len(names))
    rows = [_filled(size, env) for size in sizes]
    shortest, longest = SEGMENT_STEPS
    behind = [
        shortest * (sum(rows[turn + 1 :]) + _filled(least_behind, env)) for turn in range(len(rows))
    ]
    if shortest * rows[0] + behind[0] > budget:
        return None
    left, set_aside, played = list(names), dict[str, float](), 0
    for turn, size in enumerate(sizes):
        share = (budget - played) // (2 * (len(sizes) - turn))
        most = min(longest, (budget - played - behind[turn]) // rows[turn])
        segment = min(max(share // rows[turn], shortest), most)
        means = _play_round(policy, env, left, segment, seed=seed, first_step=played)
        played += rows[turn] * segment
        # Of equals the first in the hub.
        ranked = sorted(left, key=lambda name: -means[name])
        going_on = set(ranked[: math.ceil(size / 2)])
        set_aside |= {name: means[name] / segment for name in left if name not in going_on}
        left = [name for name in left if name in going_on]
    return Halving(set_aside, sizes, played)


def round_sizes(count: int) -> list[int]:
    """Number of sources in each round, of which half go on."""
    sizes = []
    while count > FEW_SOURCES:
        sizes.append(count)
        count = math.ceil(count / 2)
    return sizes


def _filled(segments: int, env: VecEnv) -> int:
    """Segments that are played where every environment plays as many."""
    return math.ceil(segments / env.num_envs) * env.num_envs


def _play_round(
    policy: HubActorCriticPolicy,
    env: VecEnv,
    names: list[str],
    segment: int,
    *,
    seed: int,
    first_step: int,
) -> dict[str, float]:
    """Mean return of each source's segments, one or, where environments are left over, two."""
    returns: dict[str, list[float]] = {name: [] for name in names}
    for first in range(0, len(names), env.num_envs):
        players = [names[(first + row) % len(names)] for row in range(env.num_envs)]
        step = first_step + first * segment
        earned = play_segment(policy, env, players, segment, seed=seed, first_step=step)
        for name, value in zip(players, earned, strict=True):
            returns[name].append(value)
    return {name: float(np.mean(own)) for name, own in returns.items()}
