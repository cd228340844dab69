"""A probe: every pathway plays a little on the target, and those that are worth nothing there are dropped.

The design is ours. Pathways race: after every round those whose mean return is below the best one's by more than three
standard errors of the difference leave the race. In place of the fresh pathway, which has learned nothing yet, untrained
networks of its architecture race, another one in every segment. A source is trusted only if its better half does what
they do not; if none does, the fresh pathway stays alone and training is training from scratch. The better half counts
because a source may be good for a part of the task alone. Where episodes can end early, in a crash or a success, a segment
says little of what follows: a source that earns more there, but not clearly, is left in doubt, and whole episodes decide; so it
is where every segment earns the same, as under rare rewards. Where none ended in the probe's segments, which are short, it is set
aside, and comes back in doubt if one does in training.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from hubrl.errors import BadConfig
from hubrl.evidence import STANDARD_ERRORS, Returns, still_racing
from hubrl.extractor import see_through_normalisation
from hubrl.pathways import FRESH
from hubrl.policies import HubActorCriticPolicy
from hubrl.sources import action_params
from hubrl.standing import starting_points

NEAR = 0.5
"""Share of what the best earns above untrained networks at which a source stays, however clear it is that it earns less.

Segments are short and show the beginning of an episode alone; whole episodes, played alone, tell those that are near each other apart.
"""

SEGMENTS = 6
"""How many segments every pathway should have, if nobody leaves early."""

UNTRAINED_STD = 0.05
"""Noise of an untrained network where sources keep their own."""

CLEARLY = 4.0
"""Standard errors by which a source must be above untrained networks: they are few, and their spread is not known well."""

ENOUGH = 4
"""Segments that every pathway has before any leaves: fewer can by chance all be of one part of the task."""

SEEDS = 1_000_003
"""Between the untrained networks of one seed and those of the next."""

SEGMENT_STEPS = (15, 250)
"""Shortest and longest segment that a pathway plays at a time."""


class Judgement(NamedTuple):
    """What follows from the segments of a probe."""

    kept: dict[str, bool]
    """Whether each pathway may be active in training."""
    start: dict[str, float]
    """Where the router starts for each pathway."""
    doubted: list[str]
    """Sources that stay until whole episodes say what they are worth."""
    aside: list[str]
    """Sources that are dropped unless an episode ends early after all, and then are in doubt."""


class Verdict(NamedTuple):
    """What a probe found out."""

    returns: Returns
    """Return of every segment, by pathway."""
    judged: Judgement
    """What follows from that."""
    segment: int
    """Steps of a segment."""
    steps: int
    """Environment steps that the probe took."""


def better_half(segments: Sequence[float]) -> list[float]:
    """The greater half of some returns; the middle one is in it."""
    return sorted(segments)[len(segments) // 2 :]


def useful(source: Sequence[float], untrained: Sequence[float]) -> bool:
    """Whether the better half of a source's segments is clearly above what untrained networks earn.

    By `CLEARLY` standard errors, from the spread of the untrained networks' segments; two segments each are the least.
    """
    if min(len(source), len(untrained)) < 2:
        return False
    better = better_half(source)
    error = float(np.std(untrained, ddof=1)) * math.sqrt(1 / len(better) + 1 / len(untrained))
    return float(np.mean(better) - np.mean(untrained)) > CLEARLY * error


def promising(source: Sequence[float], untrained: Sequence[float]) -> bool:
    """Whether the better half of a source's segments is above what untrained networks earn, however little.

    Above all of it, not above its better half: where a segment is too short to fall in, some of them earn all that can be had.
    """
    return min(len(source), len(untrained)) > 0 and float(np.mean(better_half(source)) - np.mean(untrained)) > 0


def closeness(returns: Returns, name: str) -> float:
    """What share of that by which the best pathway is above untrained networks a pathway reaches; 0 if it never played."""
    means = {name: float(np.mean(segments)) for name, segments in returns.items() if segments}
    gap = max(means.values()) - means.get(FRESH, math.nan)
    return (means[name] - means[FRESH]) / gap if name in means and gap > 0 else 0.0


def tied(source: Sequence[float], untrained: Sequence[float]) -> bool:
    """Whether all segments earned the same, so that they tell nothing."""
    return len({*source, *untrained}) == 1


def judge(returns: Returns, *, ended: bool = False, decidable: bool = False) -> Judgement:
    """Whom to keep, where the router starts, and who is in doubt, from the segments' returns.

    Sources stay if they are not clearly worse than the best pathway, or near it, and do what untrained networks do not; see
    `starting_points` for the start. The fresh pathway always stays. Sources that do not clearly do what untrained networks do not are
    dropped, or left in doubt: the promising where episodes end early, and those that tie with untrained networks in every segment. Where
    no episode ended yet the promising are set aside.

    Args:
        returns: Of every segment, by pathway.
        ended: Whether an episode ended of itself.
        decidable: Whether there may be doubt, because whole episodes will decide.
    """
    racing = still_racing(returns, STANDARD_ERRORS)
    trusted, doubted, aside = racing, list[str](), list[str]()
    if FRESH in returns:
        near = [name for name in returns if name != FRESH and (name in racing or closeness(returns, name) >= NEAR)]
        trusted = [name for name in near if useful(returns[name], returns[FRESH])]
        others = [name for name in near if decidable and name not in trusted]
        hopeful = [name for name in others if promising(returns[name], returns[FRESH])]
        doubted = [name for name in others if tied(returns[name], returns[FRESH]) or (ended and name in hopeful)]
        aside = [name for name in hopeful if not ended]
    kept = {name: name in (*trusted, *doubted, FRESH) for name in returns}
    return Judgement(kept, starting_points(returns, trusted, doubted), doubted, aside)


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
    names = policy.method.candidates.names
    segment = min(budget // (math.ceil(SEGMENTS * len(names) / env.num_envs) * env.num_envs), SEGMENT_STEPS[1])
    if segment < SEGMENT_STEPS[0]:
        return None
    returns: Returns = {name: [] for name in names}
    steps, turn, racing, may_end = 0, 0, list(names), False
    while len(racing) > 1 and steps + segment * env.num_envs <= budget:
        players = [racing[(turn + index) % len(racing)] for index in range(env.num_envs)]
        turn += env.num_envs
        earned, ended = play_segment(policy, env, players, segment, on_step, seed=SEEDS * (model.seed or 0) + steps)
        may_end = may_end or ended
        for name, value in zip(players, earned, strict=True):
            returns[name].append(value)
        steps += segment * env.num_envs
        if all(len(returns[name]) >= ENOUGH for name in racing):
            survivors = still_racing({name: returns[name] for name in racing})
            racing = [name for name in racing if name in survivors or (name == FRESH and len(survivors) > 1)]
    judged = judge(returns, ended=may_end, decidable=policy.solos is not None and policy.holds)
    worth = [float(np.mean(segments)) if segments else math.nan for segments in returns.values()]
    policy.method.trust(list(judged.kept.values()), list(judged.start.values()), worth)
    return Verdict(returns, judged, segment, steps)


@torch.no_grad()
def play_segment(
    policy: HubActorCriticPolicy, env: VecEnv, players: list[str], segment: int, on_step: Callable[[int], None], *, seed: int = 0
) -> tuple[list[float], bool]:
    """One segment from a reset, every environment under one pathway.

    Where the fresh pathway is to play, an untrained network does, drawn by the seed and the environment's position.

    Returns:
        What each earned up to the first end of an episode, and whether any episode ended of itself, not by a limit of time.
    """
    untrained = {row: Untrained(policy, seed + row) for row, name in enumerate(players) if name == FRESH}
    names = policy.method.candidates.names
    pathway = torch.tensor([names.index(name) for name in players], device=policy.device)
    policy.set_training_mode(False)
    observations = env.reset()
    earned, playing, ended = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool), False
    for _ in range(segment):
        see_through_normalisation(policy, env)
        seen: Any = obs_as_tensor(observations, policy.device)  # type: ignore[arg-type]
        actions = policy.act_as(seen, pathway)
        for row, network in untrained.items():
            actions[row] = network.act(seen, row)
        observations, rewards, dones, infos = env.step(actions)
        earned += true_rewards(env, rewards) * playing
        ended = ended or any(done and not info.get("TimeLimit.truncated", False) for done, info in zip(dones, infos, strict=True))
        playing &= ~dones
        on_step(env.num_envs)
    return [float(value) for value in earned], ended


class Untrained:
    """A network of the fresh pathway's architecture as it is before any training, but for a last layer that matters.

    It acts with the noise of a source, so that what is compared is what the means do.
    """

    def __init__(self, policy: HubActorCriticPolicy, seed: int) -> None:
        self.policy = policy
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.extractor, self.hidden, self.head = copy.deepcopy((policy.pi_features_extractor, policy.mlp_extractor, policy.action_net))
            for part, gain in ((self.extractor, math.sqrt(2)), (self.hidden, math.sqrt(2)), (self.head, 1.0)):
                part.apply(partial(policy.init_weights, gain=gain))

    def act(self, observations: Any, row: int) -> np.ndarray:
        """Its action for one row of observations."""
        policy = self.policy
        one = (
            {key: part[row : row + 1] for key, part in observations.items()}
            if isinstance(observations, dict)
            else observations[row : row + 1]
        )
        seen: Any = preprocess_obs(one, policy.observation_space, normalize_images=policy.normalize_images)
        said = self.head(self.hidden.forward_actor(self.extractor(seen)))
        if isinstance(policy.action_space, spaces.Discrete):
            said = said.log_softmax(dim=1)
        else:
            said = torch.cat([said, torch.full_like(said, math.log(policy.outputs.source_std or UNTRAINED_STD))], dim=1)
        action: np.ndarray = action_params.get_actions(said, policy.action_space, deterministic=False)[0]
        return action


def true_rewards(env: VecEnv, rewards: np.ndarray) -> np.ndarray:
    """Rewards before a VecNormalize, if there is one."""
    vec: VecNormalize | None = unwrap_vec_normalize(env)
    return rewards if vec is None else vec.get_original_reward()
