"""Methods over tiny sources."""

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn
from toys import CHOOSE, STEER, VECTOR, Toy, tiny_hub

from hubrl import Hub, Source
from hubrl.methods import create
from hubrl.routing.target import TargetSpec

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
ACTIONS = pytest.mark.parametrize("actions", [STEER, CHOOSE], ids=["box", "discrete"])


def method_of(name, sources, level="outputs", actions=STEER, space=VECTOR, **options):
    return create(name, list(sources), TargetSpec(space, level, actions), options)


def stirred(method):
    """The same with every parameter somewhere else."""
    torch.manual_seed(1)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def two(actions=STEER, algorithms=(PPO, PPO)):
    return tiny_hub(Toy(actions=actions), algorithms)


def sharper(hub):
    """The same sources, which do something."""
    stronger = [{name: 5 * tensor for name, tensor in source.tensors().items()} for source in hub]
    cards = [source.card.model_copy(update={"sha256": None}) for source in hub]
    return Hub(
        Source.from_card(card, tensors) for card, tensors in zip(cards, stronger, strict=True)
    )
