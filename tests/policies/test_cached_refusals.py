"""What cached features cannot be used for, and the sentences that refuse it."""

import numpy as np
import pytest
from cached_cases import FEATURES_ALONE, SERVED, envs_for, hub_for, under_cache
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from toys import IMAGE, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import (
    BadConfig,
    CachedVecEnv,
    Hub,
    SpaceMismatch,
)
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    OBSERVATION,
)
from hubrl.methods import available, find


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"method": "finetune", "source": "wide"},
            "method 'finetune' with sources that are trained further; leave one of them out",
        ),
        ({"tuned": True}, "method 'hub-pathway' with sources that are trained further"),
        (
            {"method": "progressive"},
            "method 'progressive', which is not made of frozen sources' features alone; leave it out",
        ),
        (
            {"method": "scratch"},
            "method 'scratch', which is not made of frozen sources' features alone",
        ),
        (
            {"level": "outputs"},
            "cached=True was given at the level of outputs, where outputs of the sources are stored anyway",
        ),
        ({"method": "componet"}, "Method 'componet' was asked to work at the level of features"),
        (
            {"router_reads": "nothing"},
            "router_reads='nothing' was given; expected 'observations' or 'features'",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(given, sentence):
    with pytest.raises(BadConfig, match=sentence):
        under_cache(PPO, **given)


def test_a_router_of_outputs_reads_no_features():
    env = Toy()
    with pytest.raises(
        BadConfig,
        match="router_reads='features' was given at the level of outputs; use level='features'",
    ):
        target(PPO, env, tiny_hub(env).agent(PPO, router_reads="features"))


def test_no_method_is_served_that_is_not_tested():
    assert {
        name
        for name in available()
        if find(name).needs_only_features
        and not find(name).tunes
        and "features" in find(name).levels
    } == {name for name, _ in SERVED}


def test_wrappers_in_the_wrong_order_are_refused():
    made = hub_for(Toy()).agent(PPO, cached=True)
    inside = "put it around the environment itself"
    with pytest.raises(BadConfig, match=inside):
        CachedVecEnv(VecNormalize(envs_for(PPO)), made)
    with pytest.raises(BadConfig, match=inside):
        CachedVecEnv(CachedVecEnv(envs_for(PPO), made), made)
    alone = hub_for(Toy(IMAGE)).agent(PPO, cached=True, **FEATURES_ALONE)
    with pytest.raises(
        BadConfig,
        match=r"cached=True was given and the environment observes Box\(26,\), without cached features",
    ):
        target(
            PPO, VecFrameStack(CachedVecEnv(envs_for(PPO, IMAGE), alone, device="cpu"), 2), alone
        )


def test_an_agent_and_an_environment_that_were_not_made_for_each_other_are_refused():
    hub = hub_for(Toy())
    made, plain = hub.agent(PPO, cached=True), hub.agent(PPO, level="features")
    env = CachedVecEnv(envs_for(PPO), made, device="cpu")
    with pytest.raises(
        BadConfig,
        match=r"the environment observes Box\(4,\), without cached features; put CachedVecEnv around it",
    ):
        target(PPO, envs_for(PPO), made)
    with pytest.raises(
        BadConfig, match="is under CachedVecEnv and the agent was made without cached=True"
    ):
        target(PPO, env, {**plain, "policy": "MultiInputPolicy"})
    with pytest.raises(BadConfig, match="was given an agent made without cached=True"):
        CachedVecEnv(envs_for(PPO), plain)
    turned = Hub([hub[1], hub[0]]).agent(PPO, cached=True)
    with pytest.raises(
        BadConfig,
        match="The environment caches the sources wide, narrow, the agent reads narrow, wide",
    ):
        target(PPO, env, turned)
    alone = hub.agent(PPO, "frozen", cached=True, source="wide")
    with pytest.raises(
        BadConfig, match="The environment caches the sources wide, the agent reads wide, narrow"
    ):
        target(PPO, CachedVecEnv(envs_for(PPO), alone, device="cpu"), made)


def test_an_agent_that_reads_observations_is_refused_where_none_are_kept():
    hub = hub_for(Toy(IMAGE))
    env = CachedVecEnv(
        envs_for(PPO, IMAGE), hub.agent(PPO, cached=True, **FEATURES_ALONE), device="cpu"
    )
    for options in ({}, {"fresh": False}, {"router_reads": "features"}):
        with pytest.raises(
            BadConfig,
            match="Method 'hub-pathway' as it was given reads observations, and only cached features were kept",
        ):
            target(PPO, env, hub.agent(PPO, cached=True, **options))


def test_observations_that_look_like_cached_features_are_refused():
    for name in (CACHED_FEATURES, OBSERVATION):
        space = spaces.Dict({name: VECTOR})
        hub = Hub.from_agents([tiny(PPO, Toy(space))])
        with pytest.raises(
            SpaceMismatch,
            match=r"a part called 'source_features', or 'observation' alone, is ambiguous",
        ):
            CachedVecEnv(envs_for(PPO, space), hub.agent(PPO, cached=True))


def test_sources_that_do_not_fit_or_read_other_images_are_refused():
    hub = hub_for(Toy())
    with pytest.raises(
        SpaceMismatch, match=r"The target observes Box\(7,\), source 'wide' observes Box\(4,\)"
    ):
        CachedVecEnv(envs_for(PPO, spaces.Box(-1, 1, (7,))), hub.agent(PPO, cached=True))
    kinds = [
        tiny(PPO, Toy(IMAGE), seed, normalize_images=scaled)
        for seed, scaled in enumerate((True, False))
    ]
    with pytest.raises(
        SpaceMismatch, match="Some sources read images from 0 to 1 and some from 0 to 255"
    ):
        CachedVecEnv(envs_for(PPO, IMAGE), Hub.from_agents(kinds).agent(PPO, cached=True))


def test_observations_of_another_shape_are_refused():
    model, _ = under_cache(PPO)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(7, np.float32))
