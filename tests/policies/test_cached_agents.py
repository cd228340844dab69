"""Agents trained on cached features: loaded, read and evaluated without the wrapper, and under VecNormalize."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cached_cases import (
    BOTH,
    FEATURES_ALONE,
    Rows,
    envs_for,
    hub_for,
    observe,
    outputs_of,
    scattered,
    under_cache,
)
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecNormalize
from toys import IMAGE, PARTS, VECTOR, Toy, target, toy_for

import hubrl
from hubrl import (
    BadConfig,
    CachedVecEnv,
    Hub,
    HubCallback,
    load_agent,
    pathway_weights,
)
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    OBSERVATION,
)
from hubrl.policies.extractor import see_through_normalisation

NEW_PROCESS = """
import json, sys
import numpy as np, stable_baselines3, torch
torch.set_num_threads(1)
rows = np.load(sys.argv[1] + "/rows.npy")
models = [getattr(stable_baselines3, name).load(f"{sys.argv[1]}/{name}.zip", device="cpu") for name in sys.argv[2:]]
print(json.dumps([model.predict(rows, deterministic=True)[0].tolist() for model in models]))
"""


def one_of(rows, index):
    return (
        {key: part[index] for key, part in rows.items()} if isinstance(rows, dict) else rows[index]
    )


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, DQN, TRPO], ids=lambda algorithm: algorithm.__name__
)
@BOTH
def test_a_loaded_model_takes_observations_as_the_environment_gives_them(
    algorithm, options, tmp_path
):
    options |= {"explore_coef": 0.0} if algorithm is TRPO else {}
    model, _ = under_cache(algorithm, **options)
    scattered(model.learn(48)).save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    env = model.get_env()
    env.seed(1)
    seen = env.reset()
    batch = observe(VECTOR)
    acted, _ = model.predict(batch, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(batch, deterministic=True)[0], acted)
    assert len(np.unique(acted, axis=0)) > 1
    for row, action in zip(batch, acted, strict=True):
        one, _ = loaded.predict(row, deterministic=True)
        assert one.shape == action.shape
        np.testing.assert_allclose(one, action, atol=1e-4)
    raw = seen[OBSERVATION] if isinstance(seen, dict) else None
    if raw is not None:
        np.testing.assert_allclose(
            loaded.predict(raw, deterministic=True)[0],
            loaded.predict(seen, deterministic=True)[0],
            atol=1e-5,
        )
    again = algorithm.load(tmp_path / "model.zip", env=env, device="cpu")
    again.learn(16)


@BOTH
def test_images_are_read_channel_last_or_first_one_or_a_batch(options):
    model, _ = under_cache(PPO, IMAGE, **options)
    scattered(model)
    batch = observe(IMAGE)
    first = np.moveaxis(batch, -1, 1)
    acted = model.predict(batch, deterministic=True)[0]
    np.testing.assert_array_equal(model.predict(first, deterministic=True)[0], acted)
    for index in range(len(batch)):
        for one in (batch[index], first[index]):
            np.testing.assert_allclose(
                model.predict(one, deterministic=True)[0], acted[index], atol=1e-4
            )
    assert acted.std(axis=0).min() > 1e-3


@BOTH
def test_an_exploring_dqn_distinguishes_one_image_from_a_batch(options):
    model, _ = under_cache(DQN, IMAGE, **options)
    model.exploration_rate = 1.0
    batch = observe(IMAGE)
    assert model.predict(batch)[0].shape == (6,)
    assert model.predict(batch[0])[0].shape == ()
    assert model.predict(model.get_env().reset())[0].shape == (2,)


def test_parts_of_observations_are_read_as_they_are():
    model, _ = under_cache(PPO, PARTS)
    scattered(model)
    batch = observe(PARTS)
    acted = model.predict(batch, deterministic=True)[0]
    np.testing.assert_allclose(
        model.predict(one_of(batch, 2), deterministic=True)[0], acted[2], atol=1e-4
    )


def test_models_load_in_a_new_process_and_compute_their_features(tmp_path):
    expected = []
    for algorithm, options in ((PPO, {}), (DQN, FEATURES_ALONE)):
        model, _ = under_cache(algorithm, IMAGE, **options)
        scattered(model).save(tmp_path / f"{algorithm.__name__}.zip")
        np.save(tmp_path / "rows.npy", observe(IMAGE))
        expected.append(model.predict(np.load(tmp_path / "rows.npy"), deterministic=True)[0])
    command = [sys.executable, "-c", NEW_PROCESS, str(tmp_path), "PPO", "DQN"]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(hubrl.__file__).parents[1]
    )
    assert ran.returncode == 0, ran.stderr
    for answer, actions in zip(json.loads(ran.stdout), expected, strict=True):
        np.testing.assert_allclose(np.array(answer), actions, atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "options", "space"),
    [
        (PPO, {}, PARTS),
        (PPO, {}, IMAGE),
        (PPO, FEATURES_ALONE, IMAGE),
        (PPO, FEATURES_ALONE, PARTS),
        (DQN, FEATURES_ALONE, IMAGE),
    ],
)
def test_its_zip_is_read_without_executing_it_as_an_agent_of_the_target_itself(
    algorithm, options, space, tmp_path, monkeypatch
):
    model, hub = under_cache(
        algorithm, space, **options, settings={"buffer_size": 50} if algorithm is not PPO else {}
    )
    scattered(model).save(tmp_path / "agent.zip")
    rows = observe(space)
    expected = model.predict(rows, deterministic=True)[0]
    for door in ("pickle.loads", "pickle.load", "cloudpickle.loads"):
        monkeypatch.setattr(door, lambda *args, **kwargs: pytest.fail("something was unpickled"))
    source = load_agent(tmp_path / "agent.zip")
    monkeypatch.undo()
    assert source.card.algorithm == algorithm.__name__
    assert not source.card.network.hub.get("cached")
    np.testing.assert_allclose(source.predict(rows, deterministic=True)[0], expected, atol=2e-2)
    grown = Hub([*hub, source])
    again, _ = under_cache(
        algorithm,
        space,
        hub=grown,
        **options,
        settings={"buffer_size": 50} if algorithm is not PPO else {},
    )
    assert pathway_weights(again, one_of(rows, 0)).keys() >= {"wide", "narrow", "agent"}


@BOTH
def test_evaluations_are_the_same_on_the_environment_itself(options):
    model, _ = under_cache(PPO, **options)
    made = {"policy_kwargs": model.policy_kwargs}
    returns = []
    for wrap in (lambda env: env, lambda env: CachedVecEnv(env, made, device="cpu")):
        env = wrap(envs_for(PPO))
        env.seed(7)
        evaluations = EvalCallback(env, n_eval_episodes=4, eval_freq=16, verbose=0, warn=False)
        scattered(model)
        model.learn(32, callback=evaluations)
        model.num_timesteps = 0
        returns.append(evaluations.last_mean_reward)
    assert abs(returns[0]) > 0.01
    assert returns[0] == pytest.approx(returns[1], abs=1e-3)


def test_vecnormalize_normalises_observations_and_leaves_cached_features():
    far = spaces.Box(-1000.0, 1000.0, (4,))
    hub = hub_for(Toy(far))
    made = hub.agent(PPO, cached=True)
    env = VecNormalize(
        CachedVecEnv(envs_for(PPO, far), made, device="cpu"), norm_obs_keys=[OBSERVATION]
    )
    model = target(PPO, env, made)
    rows = Rows(env.venv.sources)
    model.learn(128, callback=HubCallback())
    assert rows.count == [2 + 128 + 12] * 2
    scattered(model)
    seen = env.reset()
    raw = env.get_original_obs()[OBSERVATION]
    np.testing.assert_allclose(seen[CACHED_FEATURES], outputs_of(hub, raw, far), atol=2e-3)
    np.testing.assert_allclose(
        seen[OBSERVATION],
        (raw - env.obs_rms[OBSERVATION].mean) / np.sqrt(env.obs_rms[OBSERVATION].var + 1e-8),
        atol=1e-4,
    )
    see_through_normalisation(model.policy, env)
    np.testing.assert_allclose(
        model.predict(seen[OBSERVATION], deterministic=True)[0],
        model.predict(seen, deterministic=True)[0],
        atol=1e-2,
    )


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC], ids=lambda algorithm: algorithm.__name__)
def test_vecnormalize_of_rewards_alone_goes_around_cached_features_alone(algorithm):
    hub = hub_for(toy_for(algorithm, IMAGE))
    made = hub.agent(algorithm, cached=True, **FEATURES_ALONE)
    env = VecNormalize(CachedVecEnv(envs_for(algorithm, IMAGE), made, device="cpu"), norm_obs=False)
    target(algorithm, env, made).learn(64, callback=HubCallback())
    assert env.reset().dtype == np.float16


@pytest.mark.parametrize("options", [{}, FEATURES_ALONE], ids=["kept", "heard-alone"])
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC], ids=lambda algorithm: algorithm.__name__)
def test_vecnormalize_of_cached_features_is_refused(algorithm, options):
    space = VECTOR if options == {} else IMAGE
    # SB3's own policies cannot tell what was normalised; there the callback looks.
    for callback in (HubCallback(),) if algorithm is SAC else (HubCallback(), None):
        made = hub_for(toy_for(algorithm, space)).agent(algorithm, cached=True, **options)
        env = VecNormalize(CachedVecEnv(envs_for(algorithm, space), made, device="cpu"))
        with pytest.raises(
            BadConfig,
            match="VecNormalize normalises cached features; give it norm_obs_keys without 'source_features'",
        ):
            target(algorithm, env, made).learn(64, callback=callback)
