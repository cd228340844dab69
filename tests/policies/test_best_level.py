"""The level that `Hub.agent` chooses by itself, and algorithms that need something of their own."""

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import ARS, TRPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import CHOOSE, SETTINGS, STEER, TINY, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, SpaceMismatch
from hubrl.errors import HubrlWarning

CHOICES = [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]


@pytest.mark.parametrize("actions", CHOICES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_features_are_chosen_where_outputs_are_not_mixed(algorithm, actions):
    env = Toy(actions=actions)
    hub = Hub.from_agents([tiny(PPO, env)])
    with pytest.warns(HubrlWarning, match=f"acts in {type(actions).__name__}.* learns from the"):
        made = hub.agent(algorithm)
    model = target(algorithm, env, made)
    model.learn(64, callback=HubCallback())
    assert "features_extractor_kwargs" in made["policy_kwargs"]
    hub.agent(algorithm, level="features")
    with pytest.raises(SpaceMismatch, match="outputs are mixed for Box and Discrete"):
        target(algorithm, env, hub.agent(algorithm, level="outputs"))


@pytest.mark.parametrize("method", ["hub-pathway", "uniform", "zoo-tuning", "finetune"])
def test_trpo_learns_through_every_method_as_it_is(method):
    hub = tiny_hub(Toy(), (PPO, PPO))
    options = {"source": "ppo-0"} if method == "finetune" else {}
    made = hub.agent(TRPO, method, **options)
    target(TRPO, Toy(), made).learn(64, callback=HubCallback())


def test_ars_has_no_way_to_use_a_hub():
    with pytest.raises(BadConfig, match="ARS has no features extractor .* choose another"):
        tiny_hub(Toy()).agent(ARS)


@pytest.mark.parametrize(("algorithm", "level"), [(PPO, "outputs"), (PPO, "features"),
                                                  (SAC, "features")])  # fmt: skip
def test_a_training_under_vecnormalize_without_the_callback_is_warned_of(algorithm, level):
    options = {} if level == "features" else {"hold": 1, "judging_share": 0.0}
    made = tiny_hub(Toy()).agent(algorithm, level=level, **options)

    def env():
        return VecNormalize(DummyVecEnv([Toy]))

    with pytest.warns(HubrlWarning, match="no HubCallback undoes it .* pass callback=HubCallback"):
        target(algorithm, env(), made).learn(64)
    target(algorithm, env(), made).learn(64, callback=HubCallback())  # and not where there is one
    bare = VecNormalize(DummyVecEnv([Toy]), norm_obs=False)
    target(algorithm, bare, made).learn(64)


def test_sources_see_through_the_statistics_that_are_saved():
    vec = VecNormalize(DummyVecEnv([Toy]))
    hub = tiny_hub(Toy(), (PPO,))
    model = target(PPO, vec, hub.agent(PPO, "single", source=hub.names[0]), n_steps=64)
    model.train = lambda: None
    model.learn(256, callback=HubCallback())
    vec.training = False
    raw = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = hub[0].predict(raw, deterministic=True)[0]
    acted = model.predict(vec.normalize_obs(raw), deterministic=True)[0]
    np.testing.assert_allclose(acted, expected, atol=1e-5)


def test_the_callback_as_a_class_is_answered_with_a_sentence():
    model = PPO("MlpPolicy", Toy(), policy_kwargs=TINY, **SETTINGS[PPO])
    with pytest.raises(BadConfig, match=r"^The class HubCallback .* callback=HubCallback\(\)\.$"):
        model.learn(64, callback=HubCallback)


def test_sources_and_hubs_are_printed_in_a_line():
    hub = tiny_hub(Toy())
    assert repr(hub[0]) == (
        "Source('ppo-0', PPO, observes Box(4,), actions Box(2,), 8 features, frozen)"
    )
    many = Hub([hub[0].adapted(f"source-{n}") for n in range(12)])
    assert repr(many).endswith("source-9, and 2 more)")
    assert len(repr(many)) < 160


@pytest.mark.parametrize("actions", [CHOOSE, STEER])
def test_a_source_of_another_body_is_answered_with_the_way_to_adapt_it(actions):
    hub = tiny_hub(Toy(actions=actions))
    narrow = Toy(spaces.Box(-1.0, 1.0, (3,)), actions)
    with pytest.raises(SpaceMismatch, match=r"leave it out, or, .* source.adapted\(observes="):
        target(PPO, narrow, hub.agent(PPO))
