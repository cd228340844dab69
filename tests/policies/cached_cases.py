"""Cases and helpers of the tests of cached features."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from toys import VECTOR, Toy, target, tiny, toy_for

from hubrl import (
    CachedVecEnv,
    Hub,
)
from hubrl.sources.observation_batch import to_batch

FEATURES_ALONE = {"fresh": False, "router_reads": "features"}
SERVED = [
    ("hub-pathway", {}),
    ("hub-pathway", {"top_k": 1, "fresh": False}),
    ("hub-pathway", FEATURES_ALONE),
    ("probe-commit", {}),
    ("uniform", {}),
    ("uniform", {"fresh": True, "width": 5}),
    ("concat", {}),
    ("single", {"source": "wide"}),
    ("frozen", {"source": "wide"}),
    ("zero-gates", {}),
]
WIDELY = [SERVED[0], SERVED[2], ("concat", {})]
CASES = [
    *((*served, "vector") for served in SERVED),
    *((*served, space) for served in WIDELY for space in ("image", "parts")),
]
EVERY_CASE = pytest.mark.parametrize(
    ("method", "options", "space"),
    CASES,
    ids=[f"{name}-{'-'.join(given)}-{space}" for name, given, space in CASES],
)
BOTH = pytest.mark.parametrize("options", [{}, FEATURES_ALONE], ids=["kept", "features-alone"])


def hub_for(env):
    """Two sources whose features are not equally wide."""
    image = isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 3
    wide, narrow = (
        {"features_extractor_kwargs": {"features_dim": width}} if image else {"net_arch": [width]}
        for width in (8, 5)
    )
    return Hub.from_agents(
        [
            tiny(PPO, env, 1, **wide),
            tiny(A2C, env, 2, **({"net_arch": []} if image else {}), **narrow),
        ],
        ["wide", "narrow"],
    )


def envs_for(algorithm, space=VECTOR, n_envs=2, length=10):
    actions = toy_for(algorithm).action_space
    return make_vec_env(lambda: Toy(space, actions, length), n_envs=n_envs, seed=0)


def under_cache(
    algorithm,
    space=VECTOR,
    method="hub-pathway",
    hub=None,
    n_envs=2,
    seed=0,
    settings=None,
    **options,
):
    """A target under CachedVecEnv, and its hub."""
    hub = hub or hub_for(toy_for(algorithm, space))
    made = hub.agent(algorithm, method, cached=True, **options)
    env = CachedVecEnv(envs_for(algorithm, space, n_envs), made, device="cpu")
    return target(algorithm, env, made, seed, **(settings or {})), hub


def observe(space, count=6):
    space.seed(0)
    if isinstance(space, spaces.Dict):
        return {key: observe(part, count) for key, part in space.spaces.items()}
    return np.stack([space.sample() for _ in range(count)])


def outputs_of(hub, rows, space):
    """What the sources themselves say of observations as the environment gives them."""
    tensors = [to_batch(rows, source.card, None)[0] for source in hub]
    with torch.no_grad():
        computed = [source.features(tensor) for source, tensor in zip(hub, tensors, strict=True)]
    return torch.cat(computed, dim=1).numpy()


def scattered(model):
    """The same model with weights that are at no special value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator)
                * (0.1 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5)
            )
    return model


class Rows:
    """Counts the observations that go through every source's encoder."""

    def __init__(self, sources):
        self.count = [0] * len(sources)
        for place, source in enumerate(sources):
            source.encoder.register_forward_hook(
                lambda module, inputs, features, place=place: self._add(place, len(features))
            )

    def _add(self, place, rows):
        self.count[place] += rows
