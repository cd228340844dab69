"""Synthetic arms: what a selection would meet on a task, without one."""

from collections.abc import Callable

import numpy as np

from hubrl.selection.arm_selection import ArmSelection

Arm = Callable[[float], float]
"""Return of one episode at a share of the training."""


def constant(mean: float, std: float, rng: np.random.Generator) -> Arm:
    """A source: it does not change."""
    return lambda done: float(rng.normal(mean, std))


def failing(good: float, bad: float, share: float, rng: np.random.Generator) -> Arm:
    """A source that earns much, but fails in a share of its episodes."""
    return lambda done: float(rng.normal(bad if rng.random() < share else good, 15.0))


def rising(start: float, end: float, std: float, rng: np.random.Generator) -> Arm:
    """A learner: its mean goes in a line from the beginning of the training to its end."""
    return lambda done: float(rng.normal(start + (end - start) * done, std))


def train(
    selection: ArmSelection, arms: dict[str, Arm], *, rounds: int = 60, n_envs: int = 8
) -> list[str]:
    """Play rounds of episodes, one in every environment; the name of the arm of every episode."""
    total, played = rounds * n_envs, []
    names = selection.records.names
    selection.begin(n_envs)
    for step in range(rounds):
        for env in range(n_envs):
            done = (step * n_envs + env) / total
            name = names[selection.turns[env].arm]
            played.append(name)
            selection.record(env, arms[name](done), int(done * total))
            selection.next_turn(env)
        selection.update((step + 1) * n_envs, total, float(n_envs))
    return played
