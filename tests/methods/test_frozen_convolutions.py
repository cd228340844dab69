"""A source's frozen convolutions under a new last layer and head."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, IMAGE, Toy, tiny_hub

import hubrl
from hubrl import BadConfig, CachedVecEnv, HubCallback
from hubrl.export import export
from hubrl.methods.frozen import Frozen
from hubrl.policies.extractor import parts_in
from hubrl.reading import read_live

HOW = {"source": "ppo-0", "reads": "convolutions", "precision": "bfloat16"}


def game():
    return Toy(IMAGE, CHOOSE)


def model_of(cached=True, **how):
    hub = tiny_hub(game())
    made = hub.agent(
        PPO, "frozen", cached=cached, level="features", policy_kwargs={"net_arch": []}, **HOW | how
    )
    env = make_vec_env(game, n_envs=2, seed=0)
    if cached:
        env = CachedVecEnv(env, made)
    return hub, PPO(env=env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu", **made)


def method_in(model):
    return parts_in(model.policy, Frozen)[0]


def images(model, rows=5):
    space = (
        model.env.observation_space if not hasattr(model.env, "observed") else model.env.observed
    )
    return np.random.default_rng(0).integers(0, 256, (rows, *space.shape), dtype=np.uint8)


def test_a_step_stores_what_the_last_convolution_computed_and_an_update_runs_none():
    hub, model = model_of()
    source = next(own for own in hub if own.name == "ppo-0")
    width = source.encoder.trunks.readers[0].linear[0].in_features
    assert model.observation_space.shape == (width,)
    assert model.observation_space.dtype == np.float16
    method = method_in(model)
    assert method.last.weight.shape == (source.width, width)
    ran = []
    method.pathways.sources[0].register_forward_pre_hook(lambda *_: ran.append(1))
    model.learn(64, callback=HubCallback())
    assert not ran


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_features_are_those_of_the_source_in_either_precision(precision):
    hub, model = model_of(precision=precision)
    source = next(own for own in hub if own.name == "ppo-0")
    rows = images(model)
    expected = source.encoder.trunks.readers[0].convs(torch.as_tensor(rows) / 255).flatten(1)
    stored = torch.as_tensor(model.env.compute_features(rows)).float()
    error = 0.001 if precision == "float32" else 0.02
    assert (stored - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("cached", [True, False])
def test_the_last_layer_and_the_head_learn_and_the_convolutions_stay(cached):
    _, model = model_of(cached)
    method = method_in(model)
    learned = {id(parameter) for parameter in model.policy.parameters()}
    last, head = method.last.weight.clone(), model.policy.action_net.weight.clone()
    source = method.pathways.sources[0].source
    before = [own.clone() for own in source.buffers()]
    model.learn(64, callback=HubCallback())
    assert len(learned) == len(
        {
            id(each)
            for each in (
                *method.last.parameters(),
                *model.policy.action_net.parameters(),
                *model.policy.value_net.parameters(),
            )
        }
    )
    assert not torch.equal(method.last.weight, last)
    assert not torch.equal(model.policy.action_net.weight, head)
    assert before
    assert all(torch.equal(own, old) for own, old in zip(source.buffers(), before, strict=True))


def test_a_saved_agent_acts_alike_on_observations_and_exports_as_plain_sb3(tmp_path):
    _, model = model_of()
    model.learn(64, callback=HubCallback())
    rows = images(model)
    expected = model.predict(rows, deterministic=True)[0]
    model.save(tmp_path / "cut.zip")
    again = PPO.load(tmp_path / "cut.zip", device="cpu")
    np.testing.assert_array_equal(again.predict(rows, deterministic=True)[0], expected)
    agent = hubrl.load_agent(tmp_path / "cut.zip")
    np.testing.assert_array_equal(agent.predict(rows, deterministic=True)[0], expected)
    plain = export(read_live(model, "cut"))
    assert type(plain.model.policy.features_extractor).__name__ == "NatureCNN"
    np.testing.assert_array_equal(plain.model.predict(rows, deterministic=True)[0], expected)


def test_what_cannot_be_read_is_said_in_a_sentence():
    with pytest.raises(
        BadConfig, match="reads='conv3' was given; expected 'features' or 'convolutions'"
    ):
        model_of(reads="conv3")
    flat = tiny_hub(Toy(actions=CHOOSE)).agent(
        PPO, "frozen", level="features", source="ppo-0", reads="convolutions"
    )
    with pytest.raises(
        BadConfig,
        match="reads='convolutions' was given, and source 'ppo-0' is no network of convolutions "
        "with a linear layer behind them; leave it out",
    ):
        PPO(env=Toy(actions=CHOOSE), **flat)
