"""What a trained hub is worth without what its router sees: controls of the claim that pathways depend on the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.experiments.evaluation import Played, play
from hubrl.methods.hub_pathway import HubPathway
from hubrl.policies import HubActorCriticPolicy

MEAN_WEIGHTS, SHUFFLED_INPUT = "mean-weights", "shuffled-input"


def play_controls(model: BaseAlgorithm, env: VecEnv, episodes: int, seed: int) -> dict[str, Played]:
    """Episodes under a router that is blind, played deterministically.

    With `mean-weights` router and stickiness say in every state what they say on average while the agent plays as it
    was trained; with `shuffled-input` they are told the observation of another of the parallel environments at every step.

    Args:
        model: PPO or A2C that learned by method `hub-pathway` at the level of outputs.
        env: Its task, with at least two parallel environments.
        episodes: How many for each control.
        seed: Of the episodes and of the shuffling.

    Raises:
        BadConfig: If the model has no router, or one environment has nobody to swap with.
    """
    policy = model.policy
    if not isinstance(policy, HubActorCriticPolicy) or not isinstance(policy.method, HubPathway):
        raise BadConfig("Controls of a router were asked for a model that has none at the level of outputs.")
    if env.num_envs < 2:
        raise BadConfig("Controls of a router need at least two parallel environments.")
    if policy.fresh_alone:
        # Its sources were dropped: there is no router left to be blind.
        env.seed(seed)
        alone = play(model, env, episodes)
        return {name: alone._replace(name=name) for name in (MEAN_WEIGHTS, SHUFFLED_INPUT)}
    parts: dict[str, nn.Module] = {"router": policy.method.router}
    if policy.stickiness is not None:
        parts["stickiness"] = policy.stickiness
    said: dict[str, list[Tensor]] = {name: [] for name in parts}
    env.seed(seed)
    with _heard(parts, lambda name, output: said[name].append(output.detach())):
        play(model, env, episodes)
    trusted = torch.tensor(policy.method.trusted_pathways)
    weights = torch.cat(said["router"]).masked_fill(~trusted, -torch.inf).softmax(dim=1).mean(dim=0)
    means = {"router": weights.clamp_min(1e-8).log()}
    if "stickiness" in parts:
        means["stickiness"] = torch.cat(said["stickiness"]).mean(dim=0)
    found = {}
    env.seed(seed)
    with _heard(parts, lambda name, output: means[name].expand_as(output)):
        found[MEAN_WEIGHTS] = play(model, env, episodes, name=MEAN_WEIGHTS)
    generator = torch.Generator().manual_seed(seed)
    env.seed(seed)
    with _heard(parts, lambda name, output: output[_others(len(output), generator)]):
        found[SHUFFLED_INPUT] = play(model, env, episodes, name=SHUFFLED_INPUT)
    return found


def _others(rows: int, generator: torch.Generator) -> Tensor:
    """For every row another one, drawn by a rotation."""
    shift = int(torch.randint(1, rows, (), generator=generator)) if rows > 1 else 0
    return torch.arange(rows).roll(shift)


@contextmanager
def _heard(parts: dict[str, nn.Module], said: Any) -> Iterator[None]:
    """Inside, what the parts say is replaced by what `said` makes of it, unless that is None."""
    hooks = [part.register_forward_hook(lambda module, inputs, output, name=name: said(name, output)) for name, part in parts.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
