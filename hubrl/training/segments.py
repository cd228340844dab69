"""Segments: short pieces of an episode from a reset, under one pathway in each environment."""

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from hubrl.policies.extractor import see_through_normalisation
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.routing.pathways import FRESH
from hubrl.sources import action_params
from hubrl.training.episodes import true_rewards
from hubrl.training.finite import check_step

UNTRAINED_STD = 0.05
"""Standard deviation of an untrained network's actions: a source's least."""

SEGMENT_STEPS = (15, 250)
"""Shortest and longest segment, in steps of one environment."""


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
