"""A search for options and settings: what it may search, how it goes on, and the config it ends with."""

import pytest
import yaml
from stable_baselines3 import A2C, PPO

from hubrl import BadConfig, Hub, UnknownName
from hubrl.errors import NotFinite
from hubrl.experiments.config import parse_config, read_config
from hubrl.experiments.search_space import ALGORITHM_SPACES, search_space, with_values
from hubrl.formats.schema import write_yaml
from hubrl.formats.search import Between, OneOf

SMALL = {
    "task": "CartPole-v1",
    "steps": 64,
    "eval_every": 32,
    "eval_episodes": 1,
    "algorithm_kwargs": {"n_steps": 32},
}


@pytest.fixture
def config(tmp_path):
    """A config over a hub of two tiny agents."""
    for name, algorithm in (("one", PPO), ("two", A2C)):
        algorithm(
            "MlpPolicy", "CartPole-v1", seed=1, policy_kwargs={"net_arch": [4]}, device="cpu"
        ).save(tmp_path / f"{name}.zip")
    Hub.from_agents([tmp_path / "one.zip", tmp_path / "two.zip"]).save(tmp_path / "hub")
    path = tmp_path / "mine.yaml"
    path.write_text(write_yaml({**SMALL, "hub": "hub"}))
    return path


def test_what_is_searched_depends_on_method_level_and_algorithm(config):
    space = search_space(read_config(config))
    assert space["options.explore_coef"] == Between(1e-4, 0.1, log=True)
    assert isinstance(space["options.hold"], OneOf)
    assert "algorithm_kwargs.learning_rate" in space
    features = search_space(read_config(config, ["level=features"]))
    assert "options.hold" not in features
    assert "options.explore_coef" in features
    top_1 = search_space(read_config(config, ["options.top_k=1"]))
    assert "options.judging_share" not in top_1
    scratch = search_space(read_config(config, ["method=scratch"]))
    assert all(name.startswith("algorithm_kwargs.") for name in scratch)
    assert [*search_space(read_config(config), ("options.hold",))] == ["options.hold"]
    with pytest.raises(
        UnknownName, match=r"Unknown option to search 'options\.hld'\. Did you mean 'options\.hold'"
    ):
        search_space(read_config(config), ("options.hld",))


def test_every_value_of_a_space_makes_a_config_that_is_built(config):
    from hubrl.experiments.config import load_hub

    made = read_config(config)
    hub = load_hub(made)
    for name, space in search_space(made).items():
        if name.startswith("options."):
            ends = space.values if isinstance(space, OneOf) else (space.low, space.high)
            for value in ends:
                fields = with_values(made, {name: value})
                hub.agent(PPO, made.method, **parse_config(fields, "test").options)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn", "sac", "td3"])
def test_the_settings_are_ones_that_sb3_has(algorithm):
    import inspect

    from hubrl.experiments.build_model import algorithm_class

    known = inspect.signature(algorithm_class(algorithm).__init__).parameters
    assert {*ALGORITHM_SPACES[algorithm]} <= {*known}


def test_a_search_goes_on_and_ends_with_a_config_that_trains(config, run):
    pytest.importorskip("optuna")
    words = ("tune", config, "--only", "algorithm_kwargs.gamma", "--trials")
    code, out, err = run(*words, 1)
    assert code == 0, err
    assert "0, the config as it is" in out
    code, out, err = run(*words, 3)
    assert code == 0, err
    assert "3 trials trained, 0 pruned" in out
    place = config.parent / "tuning" / "mine"
    assert sorted(path.name for path in place.iterdir()) == ["best.yaml", "trials.log"]
    best = yaml.safe_load((place / "best.yaml").read_text())
    assert best["task"] == "CartPole-v1"
    code, _, err = run("train", place / "best.yaml", "--name", "best")
    assert code == 0, err
    code, _, err = run("tune", config, "--set", "steps=128", "--trials", 3)
    assert (code, "holds the search of another config" in err) == (2, True)


def test_a_poor_trial_is_pruned(config, monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    from hubrl.experiments import tuning

    monkeypatch.setattr(tuning, "FIRST_UNPRUNED", 2)
    returns = iter([10.0, 10.0, 1.0])

    def train(folder, callbacks):
        value = next(returns)
        callbacks[0].report(32, value)
        return {"eval_mean": value}

    monkeypatch.setattr(tuning, "train", train)
    monkeypatch.setattr(tuning, "start_run_from", lambda config, folder: None)
    done = tuning.tune(config, tmp_path / "out", only=("options.hold",), trials=3)
    assert (done.completed, done.pruned, done.value, done.first) == (2, 1, 10.0, 10.0)


def test_a_trial_that_diverges_is_pruned_and_ends_nothing(config, monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    from hubrl.experiments import tuning

    outcomes = iter([10.0, NotFinite("The weights are NaN."), ValueError("nan"), 12.0])

    def train(folder, callbacks):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return {"eval_mean": outcome}

    monkeypatch.setattr(tuning, "train", train)
    monkeypatch.setattr(tuning, "start_run_from", lambda config, folder: None)
    done = tuning.tune(config, tmp_path / "out", only=("options.hold",), trials=4)
    assert (done.completed, done.pruned, done.value) == (2, 2, 12.0)
    with pytest.raises(BadConfig, match="out holds a search over 1 seeds and 3 were given"):
        tuning.tune(config, tmp_path / "out", only=("options.hold",), trials=5, seeds=3)


def test_a_search_of_nothing_is_a_sentence(config, monkeypatch):
    pytest.importorskip("optuna")
    from hubrl.experiments import tuning

    monkeypatch.setitem(ALGORITHM_SPACES, "ppo", {})
    with pytest.raises(
        BadConfig, match="has nothing to search: method 'scratch' and algorithm 'ppo'"
    ):
        tuning.tune(config, config.parent / "out", overrides=["method=scratch"])
