"""Controls of how much pathways depend on observations: evaluations with a blinded router."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.experiments.evaluation import Played, play
from hubrl.methods.hub_pathway import HubPathway
from hubrl.policies.on_policy.policy import HubActorCriticPolicy

MEAN_WEIGHTS, SHUFFLED_INPUT = "mean-weights", "shuffled-input"

Hook = Callable[[str, Tensor], Tensor | None]
"""Replacement of a named part's output; None leaves it."""


def play_controls(model: BaseAlgorithm, env: VecEnv, episodes: int, seed: int) -> dict[str, Played]:
    """Deterministic episodes under each control.

    With `mean-weights`, router and stickiness give in every state their mean over the trained
    agent's own episodes; with `shuffled-input`, those for the observation of another parallel
    environment.

    Args:
        model: PPO or A2C with method `hub-pathway` at the level of outputs.
        env: Its task, with at least two parallel environments.
        episodes: Episodes of each control.
        seed: Seed of the episodes and of the shuffling.

    Raises:
        BadConfig: If the model has no router, or there is one environment only.
    """
    policy = model.policy
    if not isinstance(policy, HubActorCriticPolicy) or not isinstance(policy.method, HubPathway):
        raise BadConfig(
            "Router controls were given a model without a router; expected hub-pathway at the "
            "level of outputs."
        )
    if env.num_envs < 2:
        raise BadConfig(
            f"Router controls were given {env.num_envs} environment; expected at least two."
        )

    def run(name: str, hook: Hook | None) -> Played:
        env.seed(seed)
        with _hooked(parts if hook else {}, hook):
            return play(model, env, episodes, name=name)

    parts: dict[str, nn.Module] = {"router": policy.method.router}
    if policy.fresh_alone or policy.evaluation_pathway >= 0:
        # One pathway acts alone: there is no router to be blinded.
        alone = run("alone", None)
        return {name: alone._replace(name=name) for name in (MEAN_WEIGHTS, SHUFFLED_INPUT)}
    if policy.stay_logit is not None:
        parts["stickiness"] = policy.stay_logit
    means = _mean_outputs(policy.method, parts, run)
    generator = torch.Generator().manual_seed(seed)
    return {
        MEAN_WEIGHTS: run(MEAN_WEIGHTS, lambda name, output: means[name].expand_as(output)),
        SHUFFLED_INPUT: run(
            SHUFFLED_INPUT, lambda name, output: output[_others(len(output), generator)]
        ),
    }


def _mean_outputs(
    method: HubPathway, parts: dict[str, nn.Module], run: Callable[[str, Hook | None], Played]
) -> dict[str, Tensor]:
    """Mean outputs of router (as logits of its mean weights) and stickiness over episodes."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in parts}
    run("recorded", lambda name, output: outputs[name].append(output.detach()))
    logits = torch.cat(outputs["router"]).masked_fill(
        ~torch.tensor(method.trusted_pathways), -torch.inf
    )
    means = {name: torch.cat(rows).mean(dim=0) for name, rows in outputs.items()}
    return {**means, "router": logits.softmax(dim=1).mean(dim=0).clamp_min(1e-8).log()}


def _others(rows: int, generator: torch.Generator) -> Tensor:
    """For every row the index of another, by a random rotation."""
    shift = int(torch.randint(1, rows, (), generator=generator)) if rows > 1 else 0
    return torch.arange(rows).roll(shift)


@contextmanager
def _hooked(parts: dict[str, nn.Module], hook: Hook | None) -> Iterator[None]:
    """Inside, the outputs of the parts are replaced by a hook."""
    handles = [
        part.register_forward_hook(
            lambda module, inputs, output, name=name: hook and hook(name, output)
        )
        for name, part in parts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
