"""Runs of every method, trained once for all tests."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from stable_baselines3 import DQN, PPO
from toys import CHOOSE, STEER, VECTOR, Toy, tiny_hub

from hubrl import (
    methods,
)
from hubrl.methods import create
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import TargetSpec

OPTIONS = {
    "single": {"source": "ppo-0"},
    "finetune": {"source": "ppo-0"},
    "frozen": {"source": "ppo-0"},
}
HUBS = {name: (PPO, PPO) for name in ("zoo-tuning", "lite-zoo-tuning", "soup", "progressive")}
"""Methods whose sources have to be alike."""
TEACHES = ("hub-pathway", "finetune", "kickstart", "multipolar", "componet")
"""Methods through which DQN learns at the outputs."""

ACTIONS = {"box": STEER, "discrete": CHOOSE}
SERVED = [(name, level) for name in methods.available() for level in methods.find(name).levels]
LEVELS = pytest.mark.parametrize(("name", "level"), SERVED)
REFUSED = [
    (name, level)
    for name in methods.available()
    for level in ("features", "outputs")
    if (name, level) not in SERVED
]


class Run(NamedTuple):
    """A method that an algorithm learns through."""

    name: str
    level: str
    algorithm: Any
    acts: str

    @property
    def actions(self):
        return ACTIONS[self.acts]

    @property
    def label(self):
        return f"{self.name}-{self.level}-{self.algorithm.__name__}-{self.acts}"


RUNS = [
    *(
        Run(name, "features", *how)
        for name, level in SERVED
        if level == "features"
        for how in ((PPO, "box"), (DQN, "discrete"))
    ),
    *(
        Run(name, "outputs", PPO, acts)
        for name, level in SERVED
        if level == "outputs"
        for acts in ("box", "discrete")
    ),
    *(Run(name, "outputs", DQN, "discrete") for name in TEACHES),
]


@cache
def hub_of(algorithms, acts):
    return tiny_hub(Toy(actions=ACTIONS[acts]), algorithms)


def hub_for(name, acts="box"):
    return hub_of(HUBS.get(name), acts)


def built(name, level="features", hub=None, **options):
    target_of = TargetSpec(VECTOR, level, STEER, 0.05)
    return create(name, list(hub or hub_for(name)), target_of, OPTIONS.get(name, {}) | options)


def routed(method, rows, noise_key=None):
    pathways = method.pathways
    fresh = (
        torch.ones(len(rows), pathways.width)
        if pathways.target.level == "outputs" and pathways.names[-1] == FRESH
        else None
    )
    noise = None if noise_key is None else method.draw_noise(rows, noise_key)
    return method(rows, fresh=fresh, noise=noise)
