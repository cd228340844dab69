"""Sources that Zoo-Tuning can make one network of, and those it refuses."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from torch import nn
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny, tiny_hub
from zoo_cases import BOTH, ZOO

from hubrl import BadConfig, Hub, Source, SpaceMismatch
from hubrl.methods import create
from hubrl.methods.gated_layers import Gates
from hubrl.methods.lite_zoo_tuning import LiteLayer
from hubrl.reading import read_live
from hubrl.routing.target import TargetSpec


def agents(*makes, observations=VECTOR, actions=STEER):
    env = Toy(observations, actions)
    return Hub.from_agents([tiny(kind, env, seed, **how) for seed, (kind, how) in enumerate(makes)])


RELU = {"activation_fn": nn.ReLU}
UNLIKE = [
    (
        [(PPO, {}), (PPO, {"net_arch": [6]})],
        "features",
        r"source 'ppo-1' has Linear\(.*out_features=6.*\) at layer encoder.hidden.0 where 'ppo-0' has",
    ),
    (
        [(PPO, {}), (PPO, {"net_arch": [8, 8]})],
        "features",
        r"source 'ppo-1' has Linear\(.*\) at layer encoder.hidden.2 where 'ppo-0' has nothing",
    ),
    (
        [(PPO, {"net_arch": [8, 8]}), (PPO, {})],
        "features",
        r"source 'ppo-1' has nothing at layer encoder.hidden.2 where 'ppo-0' has Linear",
    ),
    (
        [(PPO, {}), (PPO, RELU)],
        "features",
        r"source 'ppo-1' has activations \[.*'ReLU'.*\] where 'ppo-0' has \[.*'Tanh'.*\]",
    ),
    (
        [(PPO, RELU), (SAC, {})],
        "outputs",
        r"source 'sac-1' has Linear\(.*\) at layer action.log_std where 'ppo-0' has nothing",
    ),
    (
        [(PPO, RELU), (TD3, {})],
        "outputs",
        r"source 'td3-1' has a deterministic head where 'ppo-0' has a gaussian one",
    ),
]


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize(("makes", "level", "difference"), UNLIKE)
def test_sources_that_differ_are_refused_in_one_sentence(name, makes, level, difference):
    does = "averages layers" if name == "soup" else "aggregates layers of one shape"
    with pytest.raises(
        SpaceMismatch,
        match=rf"^Method '{name}' {does}, and {difference}.*; leave it out, or use method 'hub-pathway'\.$",
    ):
        create(name, list(agents(*makes)), TargetSpec(VECTOR, level, STEER), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_sources_of_other_observations_are_refused(name):
    here = agents((PPO, {}))[0]
    there = Hub.from_agents([tiny(PPO, Toy(spaces.Box(-1.0, 1.0, (6,))))], ["other"])[0]
    with pytest.raises(
        SpaceMismatch, match=r"and source 'other' reads .*\(6,\).* where 'ppo-0' reads .*\(4,\)"
    ):
        create(name, [here, there], TargetSpec(VECTOR), {})
    adapted = there.adapted("selects", observes=[0, 1, 2, 3, 0, 1])
    with pytest.raises(SpaceMismatch, match=r"and source 'selects' reads "):
        create(name, [here, adapted], TargetSpec(VECTOR), {})
    other_way = here.adapted("mirrored", signs=[-1, 1])
    with pytest.raises(
        SpaceMismatch, match=r"and source 'mirrored' has another action_map than 'ppo-0'"
    ):
        create(name, [here, other_way], TargetSpec(VECTOR, "outputs", STEER), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize("count", [1, 2])
def test_greedy_heads_are_refused_at_the_outputs(name, count):
    sources = list(agents(*[(DQN, {})] * count, actions=CHOOSE))
    with pytest.raises(
        SpaceMismatch,
        match="'dqn-0' acts by the greatest of its Q-values, which has no gradient; use level='features'",
    ):
        create(name, sources, TargetSpec(VECTOR, "outputs", CHOOSE), {})
    assert create(name, sources, TargetSpec(VECTOR), {}).features_dim == 8


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_an_empty_hub_is_refused(name):
    with pytest.raises(BadConfig, match=rf"Method '{name}' needs a source; the hub has none\."):
        create(name, [], TargetSpec(VECTOR), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_heads_with_a_spread_that_depends_on_what_is_seen_become_one_too(name):
    sources = list(agents((SAC, {}), (SAC, {})))
    for method in (
        create(name, sources, TargetSpec(VECTOR, "outputs", STEER), {}),
        create(name, sources[:1], TargetSpec(VECTOR, "outputs", STEER), {}),
    ):
        rows = torch.randn(5, 4)
        computed = method(rows).features
        assert computed.shape == (5, 4)
    torch.testing.assert_close(computed, sources[0].outputs(rows))


def normalises(name, seed, statistics):
    torch.manual_seed(seed)
    parts = {
        "encoder": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()),
        "head": nn.Linear(6, 2),
    }
    return Source(
        **parts, statistics=statistics, name=name, observation_space=VECTOR, action_space=STEER
    )


@BOTH
@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize("first", [0, 1])
def test_sources_that_normalise_differently_keep_their_outputs(name, level, first):
    statistics = {"": (np.array([1.0, -2.0, 0.5, 3.0]), np.array([4.0, 0.25, 1.0, 9.0]))}
    others = {"": (np.array([0.0, 1.0, -1.0, 2.0]), np.array([1.0, 2.0, 0.5, 4.0]))}
    pairs = [
        (normalises("one", 1, statistics), normalises("other", 2, others)),
        (normalises("plain", 3, None), normalises("one", 1, statistics)),
    ]
    rows = torch.randn(50, 4)
    for pair in pairs:
        sources = [pair[first], pair[1 - first]]
        method = create(name, sources, TargetSpec(VECTOR, level, STEER), {})
        for index, source in enumerate(sources):
            for part in method.modules():
                if isinstance(part, LiteLayer):
                    part.running_gates.copy_(torch.eye(2)[index])
                elif isinstance(part, Gates):
                    part.excite.bias.data.copy_(200.0 * torch.eye(2)[index] - 100.0)
            expected = source.outputs(rows) if level == "outputs" else source.features(rows)
            torch.testing.assert_close(method.eval()(rows).features, expected, atol=1e-5, rtol=1e-5)


def with_layer_norm(name):
    encoder = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh())
    return Source(
        encoder=encoder,
        head=nn.Linear(6, 2),
        name=name,
        observation_space=VECTOR,
        action_space=STEER,
    )


def learned_through_a_hub(name):
    env = Toy()
    return read_live(target(PPO, env, tiny_hub(env, (PPO, PPO)).agent(PPO, "zoo-tuning")), name)


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize("make", [with_layer_norm, learned_through_a_hub])
def test_sources_with_more_than_layers_are_refused_and_not_half_averaged(name, make):
    with pytest.raises(SpaceMismatch, match="and source 'one' holds"):
        create(name, [make("one"), make("other")], TargetSpec(VECTOR, "outputs", STEER), {})


def test_sources_of_images_that_normalise_are_refused():
    space = spaces.Box(0.0, 1.0, (2, 5, 5))
    statistics = {"": (np.full(space.shape, 0.5), np.ones(space.shape))}

    def reads(name, given):
        encoder = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
        return Source(encoder=encoder, name=name, observation_space=space, statistics=given)

    with pytest.raises(
        SpaceMismatch, match="and source 'one' normalises its .*; only flat observations can be"
    ):
        create(
            "zoo-tuning", [reads("plain", None), reads("one", statistics)], TargetSpec(space), {}
        )
