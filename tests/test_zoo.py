"""The RL Zoo with a hub: training, its player, going on, and searches that keep the hub."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import A2C, PPO

from hubrl import Hub, HubActorCriticPolicy, HubExtractor, UnknownName
from hubrl.zoo import MergedSettings, outputs

FEATURES = """importlib.import_module('hubrl.zoo').features('hub', explore_coef=0.01)"""
OUTPUTS = """importlib.import_module('hubrl.zoo').outputs('hub')"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """The RL Zoo's train, called with a command line in a folder with a hub; returns its managers."""
    pytest.importorskip("rl_zoo3")
    train = importlib.import_module("rl_zoo3.train")
    manager = importlib.import_module("rl_zoo3.exp_manager").ExperimentManager
    monkeypatch.chdir(tmp_path)
    for name, algorithm in (("one", PPO), ("two", A2C)):
        algorithm(
            "MlpPolicy", "CartPole-v1", seed=1, policy_kwargs={"net_arch": [4]}, device="cpu"
        ).save(f"{name}.zip")
    Hub.from_agents(["one.zip", "two.zip"]).save("hub")
    common = {"n_timesteps": 128, "n_steps": 64, "batch_size": 64, "callback": "hubrl.HubCallback"}
    levels = {
        "features": {"policy": "MlpPolicy", "policy_kwargs": FEATURES},
        "outputs": {"policy": "hubrl.HubActorCriticPolicy", "policy_kwargs": OUTPUTS},
    }
    for level, own in levels.items():
        Path(f"{level}.yml").write_text(yaml.safe_dump({"CartPole-v1": {**common, **own}}))
    policies = []
    learn = PPO.learn
    monkeypatch.setattr(
        PPO, "learn", lambda self, *a, **k: (policies.append(self.policy), learn(self, *a, **k))[1]
    )
    for name in ("objective", "load_trial", "_preprocess_hyperparams"):
        monkeypatch.setattr(manager, name, getattr(manager, name))  # put back after the test

    def call(*words):
        policies.clear()
        given = [
            "train",
            "--algo",
            "ppo",
            "--env",
            "CartPole-v1",
            "--eval-freq",
            "-1",
            "--verbose",
            "0",
        ]
        monkeypatch.setattr(sys, "argv", [*given, "--seed", "1", *map(str, words)])
        train.train()
        return list(policies)

    return call


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_the_zoo_trains_plays_and_goes_on(zoo, level, monkeypatch):
    (policy,) = zoo("-conf", f"{level}.yml", "-f", "logs")
    has_hub = isinstance(policy, HubActorCriticPolicy) or isinstance(
        policy.features_extractor, HubExtractor
    )
    assert has_hub
    saved = Path("logs/ppo/CartPole-v1_1/CartPole-v1.zip")
    assert saved.exists()
    (gone_on,) = zoo("-conf", f"{level}.yml", "-f", "more", "-i", saved)
    assert type(gone_on) is type(policy)
    enjoy = pytest.importorskip("rl_zoo3.enjoy", exc_type=ImportError)
    words = [
        "enjoy",
        "--algo",
        "ppo",
        "--env",
        "CartPole-v1",
        "-f",
        "logs",
        "-n",
        "20",
        "--no-render",
    ]
    monkeypatch.setattr(sys, "argv", words)
    enjoy.enjoy()


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_a_search_keeps_the_hub_and_draws_the_rest(zoo, level, monkeypatch):
    def small(trial, *args):
        width = trial.suggest_categorical("width", [4, 8])
        return {"policy_kwargs": {"net_arch": [width]}, "n_steps": 32, "batch_size": 32}

    samplers = importlib.import_module("rl_zoo3.exp_manager").HYPERPARAMS_SAMPLER
    monkeypatch.setitem(samplers, "ppo", small)
    words = ("-optimize", "--n-trials", 2, "--sampler", "random", "--pruner", "none")
    trained = zoo(
        "-conf",
        f"{level}.yml",
        "-f",
        "logs",
        "-n",
        64,
        "--n-evaluations",
        1,
        "--no-optim-plots",
        *words,
    )
    assert len(trained) == 2
    for policy in trained:
        extractor = getattr(policy, "features_extractor", None)
        assert isinstance(policy, HubActorCriticPolicy) or isinstance(extractor, HubExtractor)
        assert policy.mlp_extractor.policy_net[0].out_features in (4, 8)


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_a_trial_of_a_search_is_trained_with_the_hub(zoo, level, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.delitem(sys.modules, "hubrl.zoo")  # the zoo imports it, as in a process of its own
    manager = importlib.import_module("rl_zoo3.exp_manager")
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    for width in (4, 8):
        study.add_trial(
            optuna.trial.create_trial(
                params={"width": width},
                distributions={"width": optuna.distributions.IntDistribution(4, 8)},
                value=0.0,
            )
        )
    convert = {"ppo": lambda drawn: {"gamma": 0.5, "policy_kwargs": {"net_arch": [drawn["width"]]}}}
    monkeypatch.setattr(manager, "HYPERPARAMS_CONVERTER", convert)
    (policy,) = zoo(
        "-conf",
        f"{level}.yml",
        "-f",
        "logs",
        "--study-name",
        "s",
        "--storage",
        "sqlite:///s.db",
        "--trial-id",
        1,
        "--gym-packages",
        "hubrl.zoo",
    )
    extractor = getattr(policy, "features_extractor", None)
    assert isinstance(policy, HubActorCriticPolicy) or isinstance(extractor, HubExtractor)
    assert policy.mlp_extractor.policy_net[0].out_features == 8


def test_settings_are_merged_for_policy_kwargs_alone():
    settings = MergedSettings(gamma=0.9, policy_kwargs={"hub": 1, "net_arch": [8]}).copy()
    settings.update({"gamma": 0.5, "policy_kwargs": {"net_arch": [64]}})
    assert settings == {"gamma": 0.5, "policy_kwargs": {"hub": 1, "net_arch": [64]}}


def test_an_algorithm_without_outputs_is_a_sentence():
    with pytest.raises(UnknownName, match="Unknown algorithm that uses outputs 'sac'"):
        outputs("hub", algorithm="sac")
