"""Runs: a folder that holds everything, repeats, resumes, and is judged without unpickling."""

import json
import pickle
from contextlib import closing

import numpy as np
import pytest
import torch
from hubs import Interrupt, save_cartpoles
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from agents.bundle import main as bundle
from hubrl import Hub, load_agent
from hubrl.errors import BadConfig, BadFile, OutputExists
from hubrl.experiments.checkpoints import checkpoints_in, read_progress
from hubrl.experiments.evaluation import play, samples_actions
from hubrl.experiments.finished_run import evaluate_run, run_agent
from hubrl.experiments.run import start_run, train
from hubrl.experiments.run_record import training_curve
from hubrl.formats.schema import write_yaml
from hubrl.tasks.make_env import make_env

TINY = {
    "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}},
    "dqn": {"learning_starts": 16, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}},
    "sac": {"learning_starts": 16, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return save_cartpoles(tmp_path_factory.mktemp("hubs") / "cartpole", "one", "two")


def config_of(tmp_path, hub, algorithm="ppo", **fields):
    task = "Pendulum-v1" if algorithm == "sac" else "CartPole-v1"
    plain = {
        "task": task,
        "algorithm": algorithm,
        "algorithm_kwargs": TINY[algorithm],
        "steps": 256,
        "seed": 3,
        "eval_episodes": 2,
    }
    plain |= {"method": "scratch"} if algorithm == "sac" else {"hub": str(hub)}
    path = tmp_path / f"{algorithm}.yaml"
    path.write_text(write_yaml({**plain, **fields}))
    return path


def weights_of(run):
    return load_agent(run / "model.zip").tensors()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_run_folder_is_complete_and_repeats_to_the_bit(tmp_path, hub, algorithm):
    run = start_run(config_of(tmp_path, hub, algorithm), [], tmp_path / "runs")
    result = train(run)
    for name in (
        "config.yaml",
        "command.txt",
        "versions.json",
        "result.json",
        "model.zip",
        "hub/hub.yaml",
        "monitor/0.monitor.csv",
        "evaluations.npz",
    ):
        assert (run / name).exists(), name
    assert list(run.glob("tensorboard_*/events*"))
    assert json.loads((run / "result.json").read_text()) == result
    assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__
    again = start_run(run / "config.yaml", [], tmp_path / "elsewhere")
    repeated = train(again)
    assert same(weights_of(run), weights_of(again))
    assert repeated["eval_mean"] == result["eval_mean"]


def test_a_number_may_fall_to_zero_over_a_training_as_the_rl_zoo_writes_it(tmp_path, hub):
    kwargs = {**TINY["ppo"], "learning_rate": "lin_2.5e-4", "clip_range": "lin_0.1"}
    run = start_run(
        config_of(tmp_path, hub, method="scratch", algorithm_kwargs=kwargs), [], tmp_path / "runs"
    )
    assert "learning_rate: lin_2.5e-4" in (run / "config.yaml").read_text()
    seen = []

    class See(BaseCallback):
        def _on_training_start(self):
            seen.extend(
                schedule(part)
                for schedule in (self.model.lr_schedule, self.model.clip_range)
                for part in (1.0, 0.5, 0.0)
            )

        def _on_step(self):
            return True

    train(run, [See()])
    assert seen == pytest.approx([2.5e-4, 1.25e-4, 0.0, 0.1, 0.05, 0.0])
    again = start_run(run / "config.yaml", [], tmp_path / "elsewhere")
    train(again)
    assert same(weights_of(run), weights_of(again))


@pytest.mark.parametrize(
    "written", ["lin_", "lin_fast", "lin_-1", "lin_0", "lin_nan", "lin_inf", "cos_0.1", "0.1x"]
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path, hub, written):
    kwargs = {**TINY["ppo"], "clip_range": written}
    run = start_run(
        config_of(tmp_path, hub, method="scratch", algorithm_kwargs=kwargs), [], tmp_path / "runs"
    )
    with pytest.raises(
        BadConfig,
        match=f"clip_range='{written}' was given; expected a number, or lin_ and a number",
    ):
        train(run)


def test_steps_of_atari_are_a_quarter_of_the_frames_that_monitor_counts(tmp_path):
    rows = {
        "monitor/0": [(1.0, 400), (2.0, 402)],
        "monitor/1": [(3.0, 200)],
        "monitor-from-640/0": [(4.0, 41)],
    }
    for name, episodes in rows.items():
        path = tmp_path / f"{name}.monitor.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "#{}\nr,l,t\n" + "".join(f"{value},{length},0.1\n" for value, length in episodes)
        )
    config = {"task": "PongNoFrameskip-v4", "method": "scratch", "steps": 1}
    (tmp_path / "config.yaml").write_text(write_yaml({**config, "preprocessing": "atari"}))
    assert training_curve(tmp_path) == [(100, 3.0), (200, 1.0), (401, 2.0), (650, 4.0)]
    (tmp_path / "config.yaml").write_text(write_yaml({**config, "preprocessing": "atari-sb3"}))
    assert training_curve(tmp_path)[-1] == (650, 4.0)
    (tmp_path / "config.yaml").write_text(write_yaml(config))
    assert training_curve(tmp_path) == [(400, 3.0), (640, 1.0), (640, 2.0), (681, 4.0)], (
        "no episode ends behind its leg"
    )


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_atari_is_judged_with_drawn_actions_whose_randomness_is_not_the_trainings(
    tmp_path, algorithm
):
    # DQN draws from its action space at every step, also in evaluations.
    explores = {
        "learning_starts": 16,
        "buffer_size": 200,
        "exploration_initial_eps": 0.5,
        "exploration_final_eps": 0.5,
    }
    settings = {"ppo": {"n_steps": 16, "batch_size": 64, "n_epochs": 1}, "dqn": explores}[algorithm]
    plain = {
        "task": "BreakoutNoFrameskip-v4",
        "preprocessing": "atari",
        "method": "scratch",
        "n_envs": 4,
        "steps": 128,
        "seed": 2,
    }
    plain["algorithm"] = algorithm
    runs = []
    for every in (64, 128):
        path = tmp_path / f"{every}.yaml"
        path.write_text(
            write_yaml(
                {**plain, "algorithm_kwargs": settings, "eval_every": every, "eval_episodes": 4}
            )
        )
        runs.append(start_run(path, [], tmp_path / "runs"))
        train(runs[-1])
    assert len(np.load(runs[0] / "evaluations.npz")["results"]) == 2
    assert len(np.load(runs[1] / "evaluations.npz")["results"]) == 1
    assert same(weights_of(runs[0]), weights_of(runs[1]))
    first, second = (evaluate_run(runs[0], 4).returns for _ in range(2))
    assert first == second


@pytest.mark.parametrize("preprocessing", ["atari", "atari-sb3"])
def test_play_draws_in_atari_games_and_leaves_the_generators_as_they_were(preprocessing):
    with closing(
        make_env("BreakoutNoFrameskip-v4", n_envs=4, seed=5, preprocessing=preprocessing)
    ) as env:
        assert samples_actions(env)
        model = PPO("CnnPolicy", env, seed=0, device="cpu")
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        returns = [
            play(model, env, 4, deterministic=deterministic).lengths
            for deterministic in (True, None)
        ]
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()
        assert returns[0] != returns[1]
    with closing(make_env("CartPole-v1")) as env:
        assert not samples_actions(env)


def test_a_runs_agent_names_its_training_and_is_bundled_in_half_precision(tmp_path, hub):
    fields = {"method": "scratch", "algorithm_kwargs": TINY["ppo"]}
    run = start_run(config_of(tmp_path, hub, **fields), [], tmp_path / "trained", "cart")
    (run / "command.txt").write_text("/some/where/bin/hubrl train configs/cart.yaml --set seed=3\n")
    train(run)
    card = run_agent(run).card
    assert (card.task, card.task_preprocessing, card.seed) == ("CartPole-v1", "none", 3)
    bundle(
        "both",
        ["cart"],
        trained=tmp_path / "trained",
        folder=tmp_path / "sources",
        episodes=2,
        half=True,
    )
    (source,) = Hub.load(tmp_path / "sources" / "both")
    card = source.card
    assert (card.name, card.origin) == ("cart", "hubrl train configs/cart.yaml --set seed=3")
    assert (card.task, card.task_preprocessing, card.steps, card.seed) == (
        "CartPole-v1",
        "none",
        256,
        3,
    )
    assert card.episodes == 2
    played = evaluate_policy(
        source, make_env("CartPole-v1", n_envs=2, seed=1003), n_eval_episodes=2
    )
    # Rounded first, then played: what the card says is of the weights in the file.
    assert card.return_mean == pytest.approx(played[0], abs=0.05)
    trained, kept = weights_of(run), source.tensors()
    assert all(
        torch.equal(kept[name], weight.half().to(weight.dtype))
        for name, weight in trained.items()
        if weight.dtype == torch.float32
    )


def test_runs_are_numbered_and_never_overwritten(tmp_path, hub):
    config = config_of(tmp_path, hub)
    runs = [start_run(config, [], tmp_path / "runs") for _ in range(2)]
    assert [run.name for run in runs] == ["ppo_1", "ppo_2"]
    start_run(config, [], tmp_path / "runs", "mine")
    with pytest.raises(OutputExists, match="mine exists"):
        start_run(config, [], tmp_path / "runs", "mine")


@pytest.mark.parametrize("algorithm", ["ppo", "dqn", "sac"])
def test_an_interrupted_run_goes_on_from_its_last_checkpoint(tmp_path, hub, algorithm):
    normalize = {"normalize": True} if algorithm == "ppo" else {}
    run = start_run(
        config_of(tmp_path, hub, algorithm, checkpoint_every=64, eval_every=64, **normalize),
        [],
        tmp_path / "runs",
    )
    with pytest.raises(KeyboardInterrupt):
        train(run, [Interrupt(200)])
    assert not (run / "result.json").exists()
    assert 1 <= len(checkpoints_in(run / "checkpoints")) <= 2
    saved = int(checkpoints_in(run / "checkpoints")[-1].name)
    assert 64 <= saved < 200
    seen = []

    class See(BaseCallback):
        def _on_training_start(self):
            seen.append(self.model.num_timesteps)

        def _on_step(self):
            return True

    before = read_progress(checkpoints_in(run / "checkpoints")[-1])
    result = train(run, [See()])
    assert seen == [saved]
    assert result["steps"] >= 256
    assert result["wall_s"] >= round(before["wall_s"], 1) > 0
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [64, 128, 192, 256], (
        "no step is evaluated twice, none is left out"
    )


def test_a_run_interrupted_after_its_probe_keeps_the_result(tmp_path, hub):
    fields = {
        "steps": 2048,
        "checkpoint_every": 256,
        "eval_every": 512,
        "probe_share": 0.2,
        "n_envs": 2,
    }
    run = start_run(config_of(tmp_path, hub, **fields), [], tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(run, [Interrupt(1000)])
    known = read_progress(checkpoints_in(run / "checkpoints")[-1])
    assert known["probe_steps"] > 0
    result = train(run)
    assert (result["probe_steps"], result["probe_kept"]) == (
        known["probe_steps"],
        known["probe_kept"],
    )
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [512, 1024, 1536, 2048], (
        "the probe's steps leave nothing out"
    )


def test_a_finished_run_is_not_trained_again(tmp_path, hub):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    train(run)
    with pytest.raises(OutputExists, match="is finished"):
        train(run)


def test_a_run_is_evaluated_without_unpickling_anything(tmp_path, hub, monkeypatch):
    run = start_run(config_of(tmp_path, hub, normalize=True), [], tmp_path / "runs")
    train(run)

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr("cloudpickle.loads", refuse)
    first, second = (evaluate_run(run, 3, seed=7).returns for _ in range(2))
    assert first == second
    assert len(first) == 3


def test_the_agent_of_a_run_is_a_source_of_the_next(tmp_path, hub):
    run = start_run(config_of(tmp_path, hub, "dqn"), [], tmp_path / "runs")
    train(run)
    grown = Hub.load(hub).add(run, "three")
    grown.save(tmp_path / "grown")
    assert Hub.load(tmp_path / "grown").names == ["one", "two", "three"]
    next_run = start_run(config_of(tmp_path, tmp_path / "grown", "ppo"), [], tmp_path / "runs")
    assert train(next_run)["steps"] >= 256


def test_what_is_no_run_is_refused(tmp_path, hub):
    with pytest.raises(BadFile, match="is no run"):
        train(tmp_path)
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    with pytest.raises(BadFile, match="finish it with"):
        evaluate_run(run, 1)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "CartPol-v1"}, "Unknown task 'CartPol-v1'. Did you mean 'CartPole-v1'"),
        ({"task": "nowhere:CartPole-v1"}, "module 'nowhere' of task"),
        ({"task_kwargs": {"gravitas": 1}}, "cannot be made with"),
        ({"algorithm_kwargs": {"n_stepps": 32}}, "PPO does not take algorithm_kwargs"),
        (
            {"task": "CartPole-v1", "algorithm": "sac", "algorithm_kwargs": {}},
            "SAC cannot be built for CartPole-v1: The algorithm only supports",
        ),
        (
            {"algorithm_kwargs": {"policy_kwargs": {"activation_fn": "bump"}}},
            "activation_fn='bump' was given",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_sentence(tmp_path, hub, fields, sentence):
    run = start_run(config_of(tmp_path, hub, **fields), [], tmp_path / "runs")
    with pytest.raises(BadConfig) as caught:
        train(run)
    assert sentence in str(caught.value)


def test_a_hub_that_does_not_fit_the_task_makes_no_half_written_run(tmp_path, hub):
    damaged = tmp_path / "damaged"
    Hub.load(hub).save(damaged)
    (damaged / "one.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadFile, match="sha256"):
        start_run(config_of(tmp_path, damaged), [], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
