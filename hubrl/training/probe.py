"""A probe: short segments of every source and of untrained networks before the training.

The design is new here. Of many sources successive halving (`hubrl.training.halving`) leaves a few,
which are then tried as those of a small hub. In place of the fresh pathway, which has learned
nothing yet, untrained networks of its architecture play, another one in every segment. What follows
from the segments stands in `hubrl.selection.probe_verdict`.
"""

import math
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from hubrl.errors import BadConfig
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.routing.pathways import FRESH
from hubrl.selection.probe_verdict import Fate, judge_segments, starting_points, still_racing
from hubrl.selection.settings import TrustSettings
from hubrl.training.halving import FEW_SOURCES, Halving, halve
from hubrl.training.segments import SEGMENT_STEPS, play_segment

SEED_STRIDE = 1_000_003
"""Distance between the untrained networks' seeds of one training seed and the next."""

SEGMENTS = 6
"""Segments per source. Fewer can by chance all lie in one part of the task."""


class ProbeResult(NamedTuple):
    """What a probe measured, and what follows from it."""

    returns: dict[str, list[float]]
    """Return of every segment, by pathway; those of untrained networks under `fresh`."""
    fates: dict[str, Fate]
    """How far each source is trusted."""
    segment: int
    """Steps of a segment."""
    steps: int
    """Environment steps that the probe took, over all parallel environments."""
    halving: Halving | None = None
    """The rounds before, in which most of many sources were set aside."""

    @property
    def kept(self) -> dict[str, bool]:
        """Whether each pathway that played to the end may act in training."""
        return {name: self.fates.get(name, Fate.KEPT) is not Fate.DROPPED for name in self.returns}


def probe(model: OnPolicyAlgorithm, budget: int) -> ProbeResult | None:
    """Let a model's pathways play segments on its own environments, and set its trust.

    Args:
        model: PPO or A2C with a hub at the level of outputs.
        budget: Environment steps that the probe may take, over all parallel environments.

    Returns:
        What was measured; None if the budget is too small.

    Raises:
        BadConfig: If the model aggregates no outputs.
    """
    policy, env = model.policy, model.get_env()
    if not isinstance(policy, HubActorCriticPolicy) or env is None:
        raise BadConfig(
            "A probe needs a model that aggregates the sources' outputs and has an environment."
        )
    settings, seed = TrustSettings(), SEED_STRIDE * (model.seed or 0)
    names, halving = policy.method.probe_candidates.names, None
    every = [name for name in names if name != FRESH]
    if len(every) > FEW_SOURCES:
        least = SEGMENTS * (FEW_SOURCES + len(names) - len(every))
        halving = halve(policy, env, every, budget, least, seed=seed)
        if halving is None:
            return None
        names = [name for name in names if name not in halving.set_aside]
    played = 0 if halving is None else halving.steps
    rounds = math.ceil(SEGMENTS * len(names) / env.num_envs)
    segment = min((budget - played) // (rounds * env.num_envs), SEGMENT_STEPS[1])
    if segment < SEGMENT_STEPS[0]:
        return None
    returns: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn * env.num_envs
        players = [names[(first + row) % len(names)] for row in range(env.num_envs)]
        earned = play_segment(
            policy,
            env,
            players,
            segment,
            seed=seed + first * segment,
            first_step=played + first * segment,
        )
        for name, value in zip(players, earned, strict=True):
            returns[name].append(value)
    fates = _fates(returns, settings)
    if halving is not None:
        fates = _with_set_aside(fates, every)
    steps = played + rounds * env.num_envs * segment
    result = ProbeResult(returns, fates, segment, steps, halving)
    _trust(policy, result, settings)
    return result


def _fates(returns: dict[str, list[float]], settings: TrustSettings) -> dict[str, Fate]:
    """The sources' fates; without untrained networks, those near the best are kept."""
    if FRESH in returns:
        sources = {name: own for name, own in returns.items() if name != FRESH}
        return judge_segments(sources, returns[FRESH], settings)
    racing = still_racing(returns, settings.episode_errors)
    return {name: Fate.KEPT if name in racing else Fate.DROPPED for name in returns}


def _with_set_aside(fates: dict[str, Fate], every: list[str]) -> dict[str, Fate]:
    """Fates of all sources, in order, behind a halving.

    What earned less than sources that are all clearly no better than untrained networks is dropped
    with them.
    """
    none_left = set(fates.values()) == {Fate.DROPPED}
    rest = Fate.DROPPED if none_left else Fate.SET_ASIDE
    return {name: fates.get(name, rest) for name in every}


def _trust(policy: HubActorCriticPolicy, result: ProbeResult, settings: TrustSettings) -> None:
    """Set the trust of the selection, or of a method without one, which keeps what is clear."""
    means = {name: float(np.mean(own)) for name, own in result.returns.items()}
    kept = [name for name, fate in result.fates.items() if fate is Fate.KEPT]
    tried = {name: own for name, own in result.returns.items() if name != FRESH}
    starts = starting_points(tried, kept, settings)
    lowest = -settings.most_lag if kept else 0.0
    start = [starts.get(name, lowest) for name in result.fates]
    if policy.selection is not None:
        worth = {} if result.halving is None else result.halving.worth(result.segment)
        known = [means.get(name, worth.get(name, math.nan)) for name in result.fates]
        policy.selection.judge(list(result.fates.values()), known, start)
        policy.follow_selection()
        return
    names = policy.method.probe_candidates.names
    fresh = [lowest] * (FRESH in result.returns)
    policy.method.apply_probe(
        [name in (*kept, FRESH) for name in names],
        [*start, *fresh],
        [means.get(name, math.nan) for name in names],
    )
