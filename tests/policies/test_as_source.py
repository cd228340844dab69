"""Agents that learned through a hub are agents like any other: read from their zips, sources of the next hub, saved and loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import CHOOSE, IMAGE, PARTS, STEER, TINY, Toy, target, tiny, tiny_hub, toy_for

import hubrl
from hubrl import Hub, HubCallback, load_agent
from hubrl.reading import read_live

NEW_PROCESS = """
import json, sys
import numpy as np, torch
from stable_baselines3 import PPO
from hubrl import Hub
torch.set_num_threads(1)
rows = np.load(sys.argv[1] + "/rows.npy")
hub = Hub.load(sys.argv[1] + "/hub")
model = PPO.load(sys.argv[1] + "/next.zip", device="cpu")
print(json.dumps([agent.predict(rows, deterministic=True)[0].tolist() for agent in (*hub, model)]))
"""

ROWS = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


def trained(algorithm, level, actions=None, steps=32, method="hub-pathway", **options):
    env = Toy(actions=actions) if actions is not None else toy_for(algorithm)
    model = target(algorithm, env, tiny_hub(env).agent(algorithm, method, level=level, **options))
    for name, parameter in model.policy.named_parameters():
        if ".router.mean." in name or "residual" in name:
            torch.nn.init.normal_(parameter)
    return model.learn(steps)


def assert_alike(source, model, rows=ROWS, atol=1e-5):
    np.testing.assert_allclose(
        source.predict(rows, deterministic=True)[0],
        model.predict(rows, deterministic=True)[0],
        atol=atol,
    )


@pytest.mark.parametrize(
    ("algorithm", "level", "actions", "options"),
    [
        (PPO, "outputs", STEER, {}),
        (PPO, "outputs", STEER, {"aggregation": "mean"}),
        (PPO, "outputs", STEER, {"top_k": 1, "residual": False, "source_std": None}),
        (PPO, "outputs", CHOOSE, {}),
        (PPO, "outputs", CHOOSE, {"aggregation": "mean"}),
        (A2C, "outputs", STEER, {}),
        (PPO, "outputs", STEER, {"method": "uniform"}),
        (PPO, "outputs", STEER, {"method": "scratch"}),
        (PPO, "outputs", STEER, {"method": "single", "source": "sac-1"}),
        (PPO, "features", STEER, {}),
        (DQN, "features", CHOOSE, {}),
        (SAC, "features", STEER, {}),
        (SAC, "features", STEER, {"method": "scratch"}),
        (PPO, "outputs", STEER, {"tuned": True}),
        (DQN, "features", CHOOSE, {"tuned": True}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_agent_that_learned_through_a_hub_is_read_from_its_zip(
    algorithm, level, actions, options, tmp_path
):
    model = trained(algorithm, level, actions, **options)
    model.save(tmp_path / "first.zip")
    source = load_agent(tmp_path / "first.zip")
    assert source.card.algorithm == algorithm.__name__
    assert_alike(source, model)
    assert_alike(read_live(model, "live"), model)
    acted, _ = model.predict(ROWS, deterministic=True)
    assert len(np.unique(acted, axis=0)) > 1, "a test of nothing: the model always does the same"


@pytest.mark.parametrize("actions", [STEER, CHOOSE], ids=["steers", "chooses"])
def test_an_agent_with_commitments_is_read_as_it_acts_without_one(actions, tmp_path):
    env = Toy(actions=actions)
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    torch.nn.init.normal_(model.policy.method.router.mean.weight)
    model.learn(32, HubCallback(probe_share=0.0))
    assert model.policy.commits
    model.save(tmp_path / "model.zip")
    assert_alike(load_agent(tmp_path / "model.zip"), model)


@pytest.mark.parametrize(
    ("algorithm", "level"),
    [(PPO, "outputs"), (PPO, "features"), (DQN, "features"), (SAC, "features")],
)
def test_it_is_a_source_of_the_next_hub_which_is_saved_and_loaded(algorithm, level, tmp_path):
    first = trained(algorithm, level)
    first.save(tmp_path / "first.zip")
    env = first.get_env().envs[0].unwrapped
    hub = Hub([load_agent(tmp_path / "first.zip"), *tiny_hub(env)])
    hub.save(tmp_path / "hub")
    loaded = Hub.load(tmp_path / "hub")
    assert loaded.names == hub.names
    assert_alike(loaded[0], first)
    before = [source.tensors() for source in loaded]
    second = target(algorithm, env, loaded.agent(algorithm, level=level)).learn(32)
    for source, tensors in zip(loaded, before, strict=True):
        assert all(torch.equal(tensors[name], tensor) for name, tensor in source.tensors().items())
    received = [
        parameter for name, parameter in second.policy.named_parameters() if ".source." in name
    ]
    assert not received, "no optimizer and no average reaches what is inside a frozen source"
    second.save(tmp_path / "second.zip")
    assert_alike(algorithm.load(tmp_path / "second.zip", device="cpu"), second)
    assert_alike(load_agent(tmp_path / "second.zip"), second)


def test_hubs_within_hubs_load_in_a_new_process(tmp_path):
    env = Toy()
    sources = []
    for algorithm, level in ((PPO, "outputs"), (SAC, "features")):
        model = trained(algorithm, level, steps=32)
        model.save(tmp_path / f"{level}.zip")
        sources.append(load_agent(tmp_path / f"{level}.zip"))
    hub = Hub(sources)
    hub.save(tmp_path / "hub")
    model = target(PPO, env, hub.agent(PPO)).learn(32)
    model.save(tmp_path / "next.zip")
    np.save(tmp_path / "rows.npy", ROWS)
    package = Path(hubrl.__file__).parents[1]
    command = [sys.executable, "-c", NEW_PROCESS, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=package)
    assert ran.returncode == 0, ran.stderr
    for answer, agent in zip(json.loads(ran.stdout), (*hub, model), strict=True):
        np.testing.assert_allclose(
            np.array(answer, np.float32), agent.predict(ROWS, deterministic=True)[0], atol=1e-6
        )


def test_its_features_end_with_its_action_parameters():
    model = trained(PPO, "outputs")
    source = read_live(model, "live")
    rows = torch.as_tensor(ROWS)
    assert source.width == 8 + 4
    assert torch.equal(source.features(rows)[:, 8:], source.outputs(rows))
    latent = model.policy.mlp_extractor.forward_actor(
        model.policy.extract_features(rows, model.policy.pi_features_extractor)
    )
    torch.testing.assert_close(source.features(rows)[:, :8], latent.detach())


def test_a_tuned_agent_of_a_hub_learns_on_and_leaves_its_own_sources(tmp_path):
    trained(PPO, "outputs").save(tmp_path / "first.zip")
    hub = Hub([load_agent(tmp_path / "first.zip")])
    before = hub[0].tensors()
    env = Toy()
    model = target(PPO, env, hub.agent(PPO, tuned=True)).learn(64)
    assert all(torch.equal(before[name], tensor) for name, tensor in hub[0].tensors().items())
    inside = model.policy.method.pathways.sources[0].source.state_dict()
    spelt = {name.replace("running_", "fixed_"): tensor for name, tensor in inside.items()}
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, spelt[name])]
    assert any("action_net" in name or "policy_net" in name for name in changed)
    assert not any(".source." in name for name in changed)
    model.save(tmp_path / "next.zip")
    assert_alike(PPO.load(tmp_path / "next.zip", device="cpu"), model)


@pytest.mark.parametrize(("algorithm", "level"), [(PPO, "outputs"), (SAC, "features")])
def test_one_that_learned_under_vecnormalize_is_read_with_its_statistics(
    algorithm, level, tmp_path
):
    far = spaces.Box(-1000.0, 1000.0, (4,))
    env = VecNormalize(make_vec_env(lambda: Toy(far), n_envs=1, seed=0))
    model = target(algorithm, env, tiny_hub(Toy(far)).agent(algorithm, level=level))
    model.learn(64, callback=HubCallback(probe_share=0.0))
    model.save(tmp_path / "first.zip")
    env.save(tmp_path / "first.vecnormalize.pkl")
    source = load_agent(tmp_path / "first.zip")
    expected, _ = model.predict(env.normalize_obs(ROWS), deterministic=True)
    np.testing.assert_allclose(source.predict(ROWS, deterministic=True)[0], expected, atol=1e-4)


@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
@pytest.mark.parametrize("level", ["features", "outputs"])
def test_images_and_dicts_are_read_too(observations, level, tmp_path):
    env = Toy(observations)
    made = Hub.from_agents([tiny(PPO, env)]).agent(PPO, level=level)
    if level == "outputs":
        made["policy_kwargs"]["features_extractor_kwargs"] = {
            "cnn_output_dim" if observations is PARTS else "features_dim": 8
        }
    model = target(PPO, env, made, n_steps=16, n_epochs=1).learn(16)
    model.save(tmp_path / "first.zip")
    env.reset(seed=0)
    rows = [env._observe(observations) for _ in range(4)]
    batch = (
        {key: np.stack([row[key] for row in rows]) for key in observations.spaces}
        if observations is PARTS
        else np.stack(rows)
    )
    assert_alike(load_agent(tmp_path / "first.zip"), model, batch)


def test_networks_of_another_shape_are_rebuilt(tmp_path):
    env = Toy()
    made = tiny_hub(env).agent(PPO)
    made["policy_kwargs"] |= {
        "net_arch": {"pi": [6, 5], "vf": [7]},
        "activation_fn": torch.nn.ReLU,
        "ortho_init": False,
    }
    model = target(PPO, env, made).learn(32)
    model.save(tmp_path / "first.zip")
    assert_alike(load_agent(tmp_path / "first.zip"), model)
    assert TINY["net_arch"] == [8]
