"""A probe: every pathway plays a little on the target, and those that are worth nothing there are dropped.

The design is ours. Pathways race: after every round those whose mean return is below the best one's by more than two
standard errors of the difference leave the race. A source is trusted only if it does better than the fresh
pathway, which has learned nothing yet; if none does, the fresh pathway stays alone and training is training from
scratch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from hubrl.errors import BadConfig
from hubrl.extractor import see_through_normalisation
from hubrl.pathways import FRESH
from hubrl.policies import HubActorCriticPolicy
from hubrl.standing import STANDARD_ERRORS, Returns, behind, still_racing

DISTRUST = 4.0
"""How far below the best source the router starts the fresh pathway: a weight of about 2 % beside one source."""

SEGMENTS = 4
"""How many segments every pathway should have, if nobody leaves early."""

SEGMENT_STEPS = (25, 250)
"""Shortest and longest segment that a pathway plays at a time."""


class Verdict(NamedTuple):
    """What a probe found out."""

    returns: Returns
    """Return of every segment, by pathway."""
    kept: dict[str, bool]
    """Whether each pathway may be active in training."""
    start: dict[str, float]
    """Where the router starts for each pathway."""
    segment: int
    """Steps of a segment."""
    steps: int
    """Environment steps that the probe took."""


def judge(returns: Returns) -> tuple[dict[str, bool], dict[str, float]]:
    """Whom to keep and where the router starts, from the segments' returns.

    Sources stay if they are not clearly worse than the best pathway and clearly better than the fresh one. The fresh
    pathway always stays; it starts low beside a source that is better than it, and alone if there is none.
    """
    racing = still_racing(returns)
    trusted = [name for name in racing if name != FRESH and behind(returns.get(FRESH, []), returns[name]) > STANDARD_ERRORS]
    if FRESH not in returns:
        trusted = racing
    kept = {name: name in trusted or name == FRESH for name in returns}
    return kept, {name: -DISTRUST if name == FRESH and trusted else 0.0 for name in returns}


def probe(model: OnPolicyAlgorithm, budget: int, on_step: Callable[[int], None] = lambda steps: None) -> Verdict | None:
    """Let the pathways of a model race on its own environments, and set the trust of its router.

    Args:
        model: PPO or A2C with a hub at the level of outputs.
        budget: Environment steps that the race may take, over all parallel environments.
        on_step: Told how many environment steps each step took.

    Returns:
        What was found out; None if the budget is too small for a race.

    Raises:
        BadConfig: If the model hears no outputs.
    """
    policy, env = model.policy, model.get_env()
    if not isinstance(policy, HubActorCriticPolicy) or env is None:
        raise BadConfig("A probe needs a model that hears the sources' outputs and has an environment.")
    names = policy.method.pathways.names
    segment = min(budget // (math.ceil(SEGMENTS * len(names) / env.num_envs) * env.num_envs), SEGMENT_STEPS[1])
    if segment < SEGMENT_STEPS[0]:
        return None
    returns: Returns = {name: [] for name in names}
    steps, turn, racing = 0, 0, list(names)
    while len(racing) > 1 and steps + segment * env.num_envs <= budget:
        players = [racing[(turn + index) % len(racing)] for index in range(env.num_envs)]
        turn += env.num_envs
        for name, value in zip(players, play_segment(policy, env, players, segment, on_step), strict=True):
            returns[name].append(value)
        steps += segment * env.num_envs
        if all(len(returns[name]) >= 2 for name in racing):
            survivors = still_racing({name: returns[name] for name in racing})
            racing = [name for name in racing if name in survivors or (name == FRESH and len(survivors) > 1)]
    kept, start = judge(returns)
    worth = [float(np.mean(segments)) if segments else math.nan for segments in returns.values()]
    policy.method.trust(list(kept.values()), list(start.values()), worth)
    return Verdict(returns, kept, start, segment, steps)


@torch.no_grad()
def play_segment(
    policy: HubActorCriticPolicy, env: VecEnv, players: list[str], segment: int, on_step: Callable[[int], None]
) -> list[float]:
    """One segment from a reset, every environment under one pathway; returns up to the first end of an episode."""
    names = policy.method.pathways.names
    pathway = torch.tensor([names.index(name) for name in players], device=policy.device)
    policy.set_training_mode(False)
    observations = env.reset()
    earned, playing = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    for _ in range(segment):
        see_through_normalisation(policy, env)
        actions = policy.act_as(obs_as_tensor(observations, policy.device), pathway)  # type: ignore[arg-type]
        observations, rewards, dones, _ = env.step(actions)
        earned += true_rewards(env, rewards) * playing
        playing &= ~dones
        on_step(env.num_envs)
    return [float(value) for value in earned]


def true_rewards(env: VecEnv, rewards: np.ndarray) -> np.ndarray:
    """Rewards before a VecNormalize, if there is one."""
    vec: VecNormalize | None = unwrap_vec_normalize(env)
    return rewards if vec is None else vec.get_original_reward()
