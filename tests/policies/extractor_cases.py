"""Models over the features of sources."""

import numpy as np
import torch
from gymnasium import spaces


def frozen(module):
    """Weights of every source in every network, target networks too."""
    return {
        name: tensor.clone() for name, tensor in module.state_dict().items() if ".source." in name
    }


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def weights_in(hub):
    """Copies of the sources' weights, by the place where a model has them."""
    return {
        f"{place}.source.{name}": tensor
        for place, source in enumerate(hub)
        for name, tensor in source.tensors().items()
    }


def differs(weights, held):
    """Names of sources' weights in a model that are not those the hub held."""
    return [
        name
        for name, tensor in weights.items()
        if not torch.equal(tensor, held[name.split(".pathways.sources.")[1]])
    ]


def observe(space, count=6, seed=0):
    space.seed(seed)
    if isinstance(space, spaces.Dict):
        return {key: observe(part, count, seed) for key, part in space.spaces.items()}
    return np.stack([space.sample() for _ in range(count)])
