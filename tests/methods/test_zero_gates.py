"""Zero-gates: it starts as scratch, opens its gates, and computes no source behind a closed one."""

import numpy as np
import pytest
import torch
from method_cases import hub_for
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, IMAGE, STEER, Toy, target, tiny_hub

from hubrl import BadConfig, CachedVecEnv, HubCallback
from hubrl.export import export
from hubrl.methods import create
from hubrl.reading import read_live
from hubrl.routing.target import TargetSpec

FLAT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def method_of(model):
    policy = model.policy
    return (policy.q_net if isinstance(model, DQN) else policy).features_extractor.method


def plain_kwargs(env):
    if len(env.observation_space.shape) == 3:
        return {"policy": "CnnPolicy", "policy_kwargs": {"net_arch": None}}
    return {"policy": "MlpPolicy", "policy_kwargs": {}}


def acting(model, observations):
    """What the policy computes of observations, before any draw."""
    batch, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        if isinstance(model, DQN):
            return model.q_net(batch)
        if isinstance(model, SAC):
            return model.actor(batch, deterministic=True)
        return torch.cat(
            [model.policy.get_distribution(batch).mode(), model.policy.predict_values(batch)], dim=1
        )


@pytest.mark.parametrize(
    ("algorithm", "space", "actions"),
    [(PPO, IMAGE, STEER), (DQN, IMAGE, CHOOSE), (PPO, None, STEER), (SAC, None, STEER)],
    ids=["ppo-image", "dqn-image", "ppo-flat", "sac-flat"],
)
def test_it_starts_as_scratch_bit_for_bit(algorithm, space, actions):
    env = Toy(space, actions=actions) if space is not None else Toy(actions=actions)
    hub = tiny_hub(env, (PPO, PPO) if algorithm is not DQN else (DQN, DQN))
    own = target(algorithm, env, hub.agent(algorithm, "zero-gates", level="features"), 3)
    plain = target(algorithm, env, plain_kwargs(env), 3)
    observations = np.stack([env.observation_space.sample() for _ in range(4)])
    assert torch.equal(acting(own, observations), acting(plain, observations))


def test_a_gate_that_opens_lets_its_source_count():
    model = target(PPO, Toy(), hub_for("zero-gates").agent(PPO, "zero-gates", level="features"), 3)
    method, rows = method_of(model), torch.as_tensor(FLAT)
    before = method(rows).features
    assert torch.equal(before, rows), "flat observations are SB3's features as they are"
    with torch.no_grad():
        method.gates[0] = 0.1
    source = method.pathways.sources[0].source
    normal = torch.nn.functional.layer_norm(source.features(rows), (source.width,))
    expected = rows + np.tanh(1.0) * method.adapters[0](normal)
    torch.testing.assert_close(method(rows).features, expected)


def test_gates_learn_and_are_logged():
    model = target(
        PPO,
        Toy(),
        hub_for("zero-gates").agent(PPO, "zero-gates", level="features"),
        3,
        learning_rate=1e-2,
    )
    model.learn(64, callback=HubCallback())
    method = method_of(model)
    assert method.gates.abs().min() > 0
    assert set(method.measures()) == {f"zero-gates/{name}" for name in method.pathways.names}


def test_nearly_closed_gates_are_closed_after_a_tenth_and_their_sources_not_computed(monkeypatch):
    model = target(PPO, Toy(), hub_for("zero-gates").agent(PPO, "zero-gates", level="features"), 3)
    method, rows = method_of(model), torch.as_tensor(FLAT)
    with torch.no_grad():
        method.gates.copy_(torch.tensor([0.004, -0.006])[: len(method.gates)])
    method.update_progress(0.95)
    assert method.open_sources == [0, 1]
    method.update_progress(0.9)
    assert method.open_sources == [1]
    asked = []
    compute = method.pathways.features_of
    monkeypatch.setattr(
        method.pathways,
        "features_of",
        lambda members, *a: asked.append(members) or compute(members, *a),
    )
    method(rows)
    assert asked == [[1]]
    with torch.no_grad():
        method.gates.zero_()
    method.update_progress(0.5)
    assert method.open_sources == [1], "gates are judged once"


def test_gates_that_have_not_learned_yet_are_not_judged():
    method = create(
        "zero-gates", list(hub_for("zero-gates")), TargetSpec(Toy().observation_space), {}
    )
    method.update_progress(0.5)
    assert method.open_sources == [0, 1]


def test_closed_gates_stay_closed_in_a_saved_model(tmp_path):
    model = target(PPO, Toy(), hub_for("zero-gates").agent(PPO, "zero-gates", level="features"), 3)
    with torch.no_grad():
        method_of(model).gates.fill_(0.001)
    method_of(model).update_progress(0.5)
    model.save(tmp_path / "model.zip")
    assert method_of(PPO.load(tmp_path / "model.zip")).open_sources == []


@pytest.mark.parametrize("space", [None, IMAGE], ids=["flat", "image"])
def test_with_all_gates_closed_it_exports_as_sb3s_own_network(space):
    env = Toy() if space is None else Toy(space)
    model = target(PPO, env, tiny_hub(env, (PPO, PPO)).agent(PPO, "zero-gates", level="features"))
    with pytest.raises(BadConfig, match="has open gates and adds features of sources"):
        export(read_live(model, "mine"))
    with torch.no_grad():
        method_of(model).gates.fill_(0.001)
    method_of(model).update_progress(0.5)
    plain = export(read_live(model, "mine")).model
    observations = np.stack([env.observation_space.sample() for _ in range(4)])
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(
        plain.predict(observations, deterministic=True)[0], expected, atol=1e-5
    )


def test_it_learns_from_cached_features():
    made = hub_for("zero-gates").agent(PPO, "zero-gates", cached=True)
    env = CachedVecEnv(make_vec_env(Toy, n_envs=2, seed=0), made)
    model = PPO(env=env, **made, n_steps=16, batch_size=16, seed=0)
    model.learn(64, callback=HubCallback())
    assert method_of(model).gates.abs().min() > 0


def test_a_net_arch_of_the_user_is_kept():
    env = Toy(IMAGE)
    hub = tiny_hub(env, (PPO, PPO))
    made = hub.agent(PPO, "zero-gates", level="features", policy_kwargs={"net_arch": [8]})
    assert made["policy_kwargs"]["net_arch"] == [8]
    assert hub.agent(PPO, "zero-gates", level="features")["policy_kwargs"]["net_arch"] == []


def test_a_hub_without_sources_is_refused():
    with pytest.raises(BadConfig, match="Method 'zero-gates' needs a source; the hub has none"):
        create("zero-gates", [], TargetSpec(Toy().observation_space), {})
