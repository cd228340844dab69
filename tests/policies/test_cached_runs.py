"""Runs and exports with cached features."""

from contextlib import closing

import numpy as np
import pytest
from cached_cases import (
    scattered,
    under_cache,
)
from hubs import save_cartpoles
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from hubrl import (
    BadConfig,
    UnknownName,
    pathway_weights,
)
from hubrl.experiments.finished_run import distill_run, evaluate_run, run_agent
from hubrl.experiments.run import start_run, train
from hubrl.formats.cached_space import (
    OBSERVATION,
)
from hubrl.formats.schema import write_yaml
from hubrl.methods import Method
from hubrl.policies.extractor import parts_in


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return save_cartpoles(tmp_path_factory.mktemp("hubs") / "cartpole", "one", "two")


def config_of(tmp_path, hub, algorithm="ppo", **fields):
    kwargs = {
        "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
        "dqn": {"learning_starts": 16, "buffer_size": 200},
    }[algorithm]
    plain = {
        "task": "CartPole-v1",
        "algorithm": algorithm,
        "algorithm_kwargs": kwargs | {"policy_kwargs": {"net_arch": [8]}},
    }
    plain |= {
        "hub": str(hub),
        "cached": True,
        "steps": 128,
        "seed": 3,
        "eval_episodes": 2,
        "eval_every": 64,
    }
    path = tmp_path / f"{algorithm}.yaml"
    path.write_text(write_yaml({**plain, **fields}))
    return path


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("ppo", {"normalize": True, "n_envs": 2}),
        ("dqn", {"method": "frozen", "options": {"source": "one"}}),
        ("ppo", {"method": "frozen", "options": {"source": "one"}, "normalize": True}),
    ],
    ids=["ppo-kept-normalised", "dqn-heard-alone", "ppo-heard-alone-normalised"],
)
def test_a_run_with_cached_true_trains_evaluates_and_is_distilled(
    algorithm, fields, cartpole, tmp_path, monkeypatch
):
    run = start_run(config_of(tmp_path, cartpole, algorithm, **fields), [], tmp_path / "runs")
    result = train(run)
    assert result["steps"] >= 128
    assert "cached: true" in (run / "config.yaml").read_text()
    for door in ("pickle.loads", "pickle.load", "cloudpickle.loads"):
        monkeypatch.setattr(door, lambda *args, **kwargs: pytest.fail("something was unpickled"))
    again = [evaluate_run(run, 3, seed=7).returns for _ in range(2)]
    assert again[0] == again[1]
    agent = run_agent(run)
    assert agent.predict(np.zeros(4, np.float32), deterministic=True)[0] in (0, 1)
    monkeypatch.undo()
    distilled = distill_run(run, tmp_path / "student.zip", steps=64, net_arch=[8], episodes=2)
    assert distilled.model.observation_space.shape == (4,)
    student = type(distilled.model).load(tmp_path / "student.zip", device="cpu")
    statistics = tmp_path / "student.vecnormalize.pkl"
    env = make_vec_env("CartPole-v1", n_envs=1)
    with closing(VecNormalize.load(str(statistics), env) if statistics.exists() else env) as vec:
        assert student.predict(vec.reset())[0].shape == (1,)
    assert statistics.exists() == (fields.get("normalize", False) and fields.get("method") is None)


def test_the_config_refuses_what_cannot_be_cached(cartpole, tmp_path):
    with pytest.raises(BadConfig, match="cached=True was given for method 'scratch'"):
        start_run(config_of(tmp_path, cartpole, method="scratch"), [], tmp_path / "runs")
    with pytest.raises(
        (BadConfig, UnknownName),
        match="cached=True was given for method 'hub-pathway' with sources that are trained further",
    ):
        start_run(config_of(tmp_path, cartpole, tuned=True), [], tmp_path / "runs")


def test_pathway_weights_are_given_for_cached_features_and_for_observations():
    model, _ = under_cache(PPO)
    scattered(model)
    env = model.get_env()
    seen = env.reset()
    names = parts_in(model.policy, Method)[0].pathways.names
    received, raw = pathway_weights(model, seen), pathway_weights(model, seen[OBSERVATION])
    assert list(received) == names == ["wide", "narrow", "fresh"]
    for name in names:
        np.testing.assert_allclose(received[name], raw[name], atol=1e-6)
    assert len(np.unique(np.round(received["wide"], 6))) == 2
