"""A probe: short segments of every source and of untrained networks before the training.

The design is new here. In place of the fresh pathway, which has learned nothing yet,
untrained networks of its architecture play, another one in every segment. What follows from the
segments stands in `hubrl.selection.probe_verdict`.
"""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from hubrl.errors import BadConfig
from hubrl.policies.extractor import see_through_normalisation
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.routing.pathways import FRESH
from hubrl.selection.probe_verdict import Fate, judge_segments, starting_points, still_racing
from hubrl.selection.settings import TrustSettings
from hubrl.sources import action_params
from hubrl.training.episodes import true_rewards
from hubrl.training.finite import check_step

UNTRAINED_STD = 0.05
"""Standard deviation of an untrained network's actions: a source's least."""

SEED_STRIDE = 1_000_003
"""Distance between the untrained networks' seeds of one training seed and the next."""

SEGMENTS = 6
"""Segments per source. Fewer can by chance all lie in one part of the task."""

SEGMENT_STEPS = (15, 250)
"""Shortest and longest segment, in steps of one environment."""


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

    @property
    def kept(self) -> dict[str, bool]:
        """Whether each pathway may act in training."""
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
    settings = TrustSettings()
    names = policy.method.probe_candidates.names
    rounds = math.ceil(SEGMENTS * len(names) / env.num_envs)
    segment = min(budget // (rounds * env.num_envs), SEGMENT_STEPS[1])
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
            seed=SEED_STRIDE * (model.seed or 0) + first * segment,
            first_step=first * segment,
        )
        for name, value in zip(players, earned, strict=True):
            returns[name].append(value)
    result = ProbeResult(
        returns, _fates(returns, settings), segment, rounds * env.num_envs * segment
    )
    _trust(policy, result, settings)
    return result


def _fates(returns: dict[str, list[float]], settings: TrustSettings) -> dict[str, Fate]:
    """The sources' fates; without untrained networks, those near the best are kept."""
    if FRESH in returns:
        sources = {name: own for name, own in returns.items() if name != FRESH}
        return judge_segments(sources, returns[FRESH], settings)
    racing = still_racing(returns, settings.episode_errors)
    return {name: Fate.KEPT if name in racing else Fate.DROPPED for name in returns}


def _trust(policy: HubActorCriticPolicy, result: ProbeResult, settings: TrustSettings) -> None:
    """Set the trust of the selection, or of a method without one, which keeps what is clear."""
    means = [float(np.mean(own)) for own in result.returns.values()]
    kept = [name for name, fate in result.fates.items() if fate is Fate.KEPT]
    start = list(
        starting_points(
            {name: result.returns[name] for name in result.fates}, kept, settings
        ).values()
    )
    if policy.selection is not None:
        policy.selection.judge(list(result.fates.values()), means[: len(start)], start)
        policy.follow_selection()
        return
    fresh = [-settings.most_lag if kept else 0.0] * (FRESH in result.returns)
    policy.method.apply_probe(
        [name in (*kept, FRESH) for name in result.returns], [*start, *fresh], means
    )


@torch.no_grad()
def play_segment(
    policy: HubActorCriticPolicy,
    env: VecEnv,
    players: list[str],
    segment: int,
    *,
    seed: int = 0,
    first_step: int = 0,
) -> list[float]:
    """Returns of one segment from a reset, every environment under one pathway.

    A segment ends with its first episode.

    Where the fresh pathway is to play, an untrained network does, drawn by the seed and the
    environment's position.

    Args:
        policy: The policy of the pathways.
        env: The training's environments.
        players: Name of the pathway in each environment.
        segment: Most steps of each environment.
        seed: Seed of the untrained networks.
        first_step: Environment steps of the probe so far.

    Raises:
        NotFinite: If an observation or a reward is NaN or infinite.
    """
    untrained = {
        row: Untrained(policy, seed + row) for row, name in enumerate(players) if name == FRESH
    }
    names = policy.method.probe_candidates.names
    pathway = torch.tensor([names.index(name) for name in players], device=policy.device)
    policy.set_training_mode(False)
    observations = env.reset()
    earned, playing = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    for step in range(segment):
        see_through_normalisation(policy, env)
        seen: Any = obs_as_tensor(observations, policy.device)  # type: ignore[arg-type]
        actions = policy.act_as(seen, pathway)
        for row, network in untrained.items():
            actions[row] = network.act(seen, row)
        observations, rewards, dones, infos = env.step(actions)
        check_step(env, observations, rewards, dones, infos, first_step + (step + 1) * env.num_envs)
        earned += true_rewards(env, rewards) * playing
        playing &= ~dones
    return [float(value) for value in earned]


class Untrained:
    """A network of the fresh pathway's architecture, untrained but for its larger last layer.

    It acts with the noise of a source, so that what is compared is what the means do.
    """

    def __init__(self, policy: HubActorCriticPolicy, seed: int) -> None:
        self.policy = policy
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.extractor, self.hidden, self.head = copy.deepcopy(
                (policy.pi_features_extractor, policy.mlp_extractor, policy.action_net)
            )
            for part, gain in (
                (self.extractor, math.sqrt(2)),
                (self.hidden, math.sqrt(2)),
                (self.head, 1.0),
            ):
                part.apply(partial(policy.init_weights, gain=gain))

    def act(self, observations: Any, row: int) -> np.ndarray:
        """Its action for one row of observations."""
        policy = self.policy
        one = (
            {key: part[row : row + 1] for key, part in observations.items()}
            if isinstance(observations, dict)
            else observations[row : row + 1]
        )
        seen: Any = preprocess_obs(
            one, policy.observation_space, normalize_images=policy.normalize_images
        )
        params = self.head(self.hidden.forward_actor(self.extractor(seen)))
        if isinstance(policy.action_space, spaces.Discrete):
            params = params.log_softmax(dim=1)
        else:
            params = torch.cat([params, torch.full_like(params, math.log(UNTRAINED_STD))], dim=1)
        action: np.ndarray = action_params.get_actions(
            params, policy.action_space, deterministic=False
        )[0]
        return action
