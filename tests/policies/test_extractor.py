"""The extractor is a well-behaved guest in every torch algorithm: what it was given stays as it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from checks import never_offered
from extractor_cases import assert_same, differs, frozen, observe, weights_in
from gymnasium import spaces
from sb3_contrib import ARS, TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from toys import IMAGE, PARTS, SETTINGS, Toy, target, tiny, tiny_hub, toy_for

import hubrl
from hubrl import BadConfig, Hub, HubExtractor, Source, SourcesNotLoaded, SpaceMismatch
from hubrl.reading import read_live
from hubrl.sources import shared

ALGORITHMS = list(SETTINGS)
NEW_PROCESS = """
import json, sys
import numpy as np, stable_baselines3, torch
torch.set_num_threads(1)
rows = np.load(sys.argv[1] + "/rows.npy")
models = [getattr(stable_baselines3, name).load(f"{sys.argv[1]}/{name}.zip", device="cpu") for name in sys.argv[2:]]
print(json.dumps([model.predict(rows, deterministic=True)[0].tolist() for model in models]))
"""


def features_target(
    algorithm, env, hub=None, method="hub-pathway", seed=0, tuned=False, settings=None, **options
):
    options |= {"explore_coef": 0.0} if algorithm is TRPO else {}
    made = {
        "policy": "MultiInputPolicy"
        if isinstance(env.observation_space, spaces.Dict)
        else "MlpPolicy"
    }
    made["policy_kwargs"] = (hub or tiny_hub(env)).policy_kwargs(method, tuned=tuned, **options)
    return target(algorithm, env, made, seed, **(settings or {}))


class Learned(NamedTuple):
    """A target of one algorithm after 128 steps, and what it was before."""

    algorithm: Any
    env: Toy
    model: Any
    held: dict
    sources: dict
    parameters: dict


@pytest.fixture(scope="module", params=ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def learned(request):
    env = toy_for(request.param)
    hub = tiny_hub(env)
    held = weights_in(hub)
    model = features_target(request.param, env, hub)
    parameters = {name: tensor.detach().clone() for name, tensor in model.policy.named_parameters()}
    return Learned(request.param, env, model, held, frozen(model.policy), parameters)._replace(
        model=model.learn(128)
    )


def test_construction_leaves_the_sources_as_they_were(learned):
    assert len(learned.sources) >= 10
    assert not differs(learned.sources, learned.held)


def test_training_leaves_the_sources_as_they_were_in_target_networks_too(learned):
    assert_same(learned.sources, frozen(learned.model.policy))


def test_routers_start_at_zero_and_learn(learned):
    routers = [name for name in learned.parameters if ".router.mean." in name]
    now = dict(learned.model.policy.named_parameters())
    assert routers
    assert all((learned.parameters[name] == 0).all() for name in routers)
    assert any((now[name] != 0).any() for name in routers)


def test_a_saved_model_acts_as_before(learned, tmp_path):
    learned.model.save(tmp_path / "model.zip")
    loaded = learned.algorithm.load(tmp_path / "model.zip", device="cpu")
    rows = observe(learned.env.observation_space)
    assert np.array_equal(
        learned.model.predict(rows, deterministic=True)[0],
        loaded.predict(rows, deterministic=True)[0],
    )
    assert_same(learned.sources, frozen(loaded.policy))


def test_optimizers_have_routers_and_no_source(learned):
    policy = learned.model.policy
    optimizers = [
        part.optimizer for part in policy.modules() if getattr(part, "optimizer", None) is not None
    ]
    held = {
        parameter.data_ptr()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    sources = {
        tensor.data_ptr() for name, tensor in policy.state_dict().items() if ".source." in name
    }
    assert held
    assert not sources & held
    assert not sources & {parameter.data_ptr() for parameter in policy.parameters()}
    assert any(
        parameter.data_ptr() in held
        for name, parameter in policy.named_parameters()
        if ".router.mean." in name
    )


@pytest.mark.parametrize(
    "algorithm", [PPO, DQN, SAC, TD3], ids=lambda algorithm: algorithm.__name__
)
def test_all_networks_of_a_model_and_all_models_share_one_copy_of_a_source(algorithm):
    env = toy_for(algorithm)
    hub = tiny_hub(env)
    apart = {"share_features_extractor": False} if algorithm is PPO else {}
    made = {"policy": "MlpPolicy", "policy_kwargs": hub.policy_kwargs() | apart}
    models = [target(algorithm, env, made, seed) for seed in (0, 1)]
    places = {}
    for model in models:
        for name, tensor in model.policy.state_dict().items():
            if ".source." in name:
                places.setdefault(name.split(".pathways.sources.")[1], set()).add(tensor.data_ptr())
    assert places
    assert all(len(copies) == 1 for copies in places.values())
    extractors = [part for part in models[0].policy.modules() if isinstance(part, HubExtractor)]
    assert len(extractors) == {PPO: 2, DQN: 2, SAC: 3, TD3: 4}[algorithm]


@pytest.mark.parametrize("tuned", [False, True])
def test_features_extractor_kwargs_are_json(tuned):
    kwargs = tiny_hub(Toy()).policy_kwargs(tuned=tuned, top_k=1)["features_extractor_kwargs"]
    assert json.loads(json.dumps(kwargs)) == kwargs


def test_models_load_in_a_new_process_without_their_sources(tmp_path):
    command, expected = [sys.executable, "-c", NEW_PROCESS], []
    for algorithm, level in ((PPO, "outputs"), (DQN, "features"), (SAC, "features")):
        env = toy_for(algorithm)
        model = target(algorithm, env, tiny_hub(env).agent(algorithm, level=level)).learn(32)
        model.save(tmp_path / f"{algorithm.__name__}.zip")
        np.save(tmp_path / "rows.npy", observe(env.observation_space))
        expected.append(model.predict(np.load(tmp_path / "rows.npy"), deterministic=True)[0])
    package = Path(hubrl.__file__).parents[1]
    ran = subprocess.run(
        [*command, str(tmp_path), "PPO", "DQN", "SAC"],
        capture_output=True,
        text=True,
        check=False,
        cwd=package,
    )
    assert ran.returncode == 0, ran.stderr
    for answer, actions in zip(json.loads(ran.stdout), expected, strict=True):
        np.testing.assert_array_equal(np.array(answer, np.float32), actions)


def test_an_algorithm_that_differentiates_its_gradient_is_refused_an_exploration_loss():
    env = Toy()
    model = target(
        TRPO,
        env,
        {"policy": "MlpPolicy", "policy_kwargs": tiny_hub(env).policy_kwargs(explore_coef=0.01)},
    )
    with pytest.raises(BadConfig, match=r"TRPO does.*set explore_coef=0"):
        model.learn(32)


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, DQN, SAC, TD3], ids=lambda algorithm: algorithm.__name__
)
def test_a_hub_without_weights_refuses_to_run(algorithm):
    env = toy_for(algorithm)
    model = target(
        algorithm,
        env,
        never_offered(
            tiny_hub(env).agent(algorithm, level="features" if algorithm is DQN else None)
        ),
    )
    with pytest.raises(SourcesNotLoaded, match=r"'ppo-0' never arrived; load a saved model"):
        model.predict(observe(env.observation_space), deterministic=True)
    with pytest.raises(SourcesNotLoaded):
        model.learn(64)


@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC], ids=lambda algorithm: algorithm.__name__)
def test_images_and_dicts_are_supported(algorithm, observations, tmp_path):
    env = toy_for(algorithm, observations)
    hub = Hub.from_agents([tiny(PPO, env)])
    small = (
        {"buffer_size": 50, "learning_starts": 8}
        if algorithm is not PPO
        else {"n_steps": 16, "n_epochs": 1}
    )
    held = weights_in(hub)
    model = features_target(algorithm, env, hub, settings=small)
    built = frozen(model.policy)
    assert not differs(built, held)
    model.learn(24)
    assert_same(built, frozen(model.policy))
    model.save(tmp_path / "model.zip")
    rows = observe(env.observation_space, 3)
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(
        model.predict(rows, deterministic=True)[0], loaded.predict(rows, deterministic=True)[0]
    )


def test_flat_observations_are_passed_on_beside_the_features():
    env = Toy()
    extractor = HubExtractor(
        env.observation_space, **tiny_hub(env).policy_kwargs(width=5)["features_extractor_kwargs"]
    )
    rows = torch.randn(3, 4)
    assert extractor.features_dim == 9
    assert torch.equal(extractor(rows)[:, 5:], rows)
    assert torch.equal(extractor(rows)[:, :5], extractor.route(rows).features)


def test_the_loss_rides_on_features_in_a_gradient_step_alone():
    env = Toy()
    extractor = HubExtractor(
        env.observation_space,
        **tiny_hub(env).policy_kwargs(explore_coef=1.0)["features_extractor_kwargs"],
    )
    torch.nn.init.normal_(extractor.method.router.mean.weight)
    rows = torch.randn(8, 4)
    gradients = []
    for training in (True, False):
        extractor.train(training)
        extractor.zero_grad()
        (0 * extractor(rows).sum()).backward()
        gradients.append(extractor.method.router.mean.weight.grad.abs().sum())
    assert gradients[0] > 0
    assert gradients[1] == 0


def test_sources_of_other_observations_are_refused_in_a_sentence():
    hub = tiny_hub(Toy())
    with pytest.raises(
        SpaceMismatch, match=r"The target observes Box\(7,\), source 'ppo-0' observes Box\(4,\)"
    ):
        features_target(PPO, Toy(spaces.Box(-1, 1, (7,))), hub)


def test_a_model_in_use_is_not_changed_by_a_file_that_claims_its_source(tmp_path):
    env = toy_for(PPO)
    hub = tiny_hub(env)
    model = features_target(PPO, env, hub)
    built = frozen(model.policy)
    parameters = model.get_parameters()
    claimed = next(name for name in parameters["policy"] if ".source." in name)
    parameters["policy"] = {name: tensor.clone() for name, tensor in parameters["policy"].items()}
    parameters["policy"][claimed] += 1
    with pytest.raises(hubrl.BadFile, match="Other weights of source 'ppo-0'"):
        model.set_parameters(parameters)
    assert_same(built, frozen(model.policy))


def test_sources_that_are_not_frozen_themselves_are_used_frozen_too():
    env = Toy()
    hub = Hub([read_live(tiny(PPO, env), "loose", frozen=False)])
    held = weights_in(hub)
    model = features_target(PPO, env, hub).learn(32)
    assert not differs(frozen(model.policy), held)
    assert_same(held, weights_in(hub))
    assert not any(".source." in name for name, _ in model.policy.named_parameters())


def test_a_source_moves_to_another_device_with_its_statistics_in_full_precision():
    encoder = torch.nn.Linear(4, 3)
    statistics = {"": (np.full(4, 1 / 3), np.full(4, 2 / 3))}
    source = Source(
        encoder=encoder,
        name="normalised",
        observation_space=Toy().observation_space,
        statistics=statistics,
    )
    moved = shared.on_device(source, torch.empty(0, device="meta"))
    assert {name: tensor.dtype for name, tensor in moved.state_dict().items()} == {
        name: tensor.dtype for name, tensor in source.state_dict().items()
    }
    assert moved.state_dict()["normaliser.mean_0"].dtype == torch.float64
    assert shared.on_device(source, torch.empty(0, device="meta")) is moved
    assert (
        shared.on_device(source, torch.empty(0, dtype=torch.float64)).encoder.weight.dtype
        == torch.float64
    )
    assert shared.on_device(source, torch.empty(0)) is source


def test_batch_norm_in_a_source_stays_fixed_in_online_and_target_networks():
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    encoder[1].running_mean.fill_(0.5)
    env = toy_for(DQN)
    hub = Hub([Source(encoder=encoder, name="normed", observation_space=env.observation_space)])
    model = features_target(DQN, env, hub, settings={"tau": 0.5})
    built = frozen(model.policy)
    assert any("fixed_mean" in name for name in built)
    model.learn(64)
    assert_same(built, frozen(model.policy))
    assert (
        next(
            part for part in model.policy.modules() if isinstance(part, torch.nn.BatchNorm1d)
        ).running_mean
        == 0.5
    ).all()


def test_an_algorithm_without_an_extractor_is_refused():
    with pytest.raises(
        BadConfig,
        match="ARS has no features extractor by which it could use a hub; choose another algorithm",
    ):
        tiny_hub(Toy()).agent(ARS)
