"""Checkpoints of a run: when they are written, who may write, and what damaged or unwritable ones say."""

import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from hubs import Interrupt, save_cartpoles
from stable_baselines3.common.callbacks import BaseCallback

from hubrl.errors import BadFile, FolderInUse, NotWritten
from hubrl.experiments import checkpoints, extended_run, run_folder
from hubrl.experiments import run as run_module
from hubrl.experiments.checkpoints import CheckpointFolder, LegEnded, checkpoints_in
from hubrl.experiments.extended_run import extend_run
from hubrl.experiments.leg import CHECKPOINT_EPISODES
from hubrl.experiments.run import start_run, train
from hubrl.formats.files import lock_folder
from hubrl.formats.schema import write_yaml

SMALL = {"net_arch": [8]}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return save_cartpoles(tmp_path_factory.mktemp("hubs") / "cartpole", "one")


def config_of(tmp_path, hub, **fields):
    kwargs = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": SMALL}
    plain = {"task": "CartPole-v1", "algorithm_kwargs": kwargs, "steps": 256, "eval_episodes": 1}
    path = tmp_path / "ppo.yaml"
    path.write_text(write_yaml({**plain, "hub": str(hub), **fields}))
    return path


def test_runs_that_start_at_the_same_moment_get_numbers_of_their_own(tmp_path, hub, monkeypatch):
    config, number = config_of(tmp_path, hub), run_module._numbered
    start_run(config, [], tmp_path / "runs")
    counted = iter(["ppo_1", "ppo_1"])
    monkeypatch.setattr(run_module, "_numbered", lambda *args: next(counted, None) or number(*args))
    assert start_run(config, [], tmp_path / "runs").name == "ppo_2"


@pytest.mark.parametrize(
    ("limit", "ended", "due"),
    [(None, 0, True), (100, 0, False), (100, 39, False), (100, 40, True), (None, 39, False)],
)
def test_a_checkpoint_waits_for_twenty_episodes_unless_none_ever_ends(
    tmp_path, monkeypatch, limit, ended, due
):
    env = SimpleNamespace(
        num_envs=2, get_attr=lambda name: [SimpleNamespace(max_episode_steps=limit)]
    )
    model = SimpleNamespace(num_timesteps=50, get_env=lambda: env, logger=None)
    folder = CheckpointFolder(tmp_path, 100, CHECKPOINT_EPISODES)
    saved = []
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *args: saved.append(args))
    folder.init_callback(model)
    folder.on_training_start({}, {})
    folder.locals = {"infos": [{"episode": {}}] * ended + [{}]}
    folder.on_step()
    for model.num_timesteps in (149, 150):
        assert not saved
        with pytest.raises(LegEnded) if due and model.num_timesteps == 150 else nullcontext():
            folder.on_rollout_start()
    assert bool(saved) is due


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_two_processes_do_not_train_one_run(tmp_path, hub, monkeypatch):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    monkeypatch.setattr(run_folder, "PATIENCE_S", 0.0)
    with (
        lock_folder(run, "held"),
        pytest.raises(FolderInUse, match="ppo_1 is being trained by another process; wait for it"),
    ):
        train(run)


def test_a_record_that_cannot_be_written_says_that_the_run_goes_on(tmp_path, hub, monkeypatch):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    (run / "monitor").write_text("a file where a folder is to be")
    monkeypatch.setattr(run_module, "remove_leftovers", lambda *args: None)
    with pytest.raises(NotWritten, match=r"The records of the run could not be written .* goes on"):
        train(run)
    monkeypatch.undo()
    assert train(run)["steps"] >= 256


@pytest.mark.parametrize("part", ["model.zip", "run.json", "episodes.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path, hub, part):
    config = config_of(tmp_path, hub, checkpoint_every=64, eval_every=64)
    run = start_run(config, [], tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(run, [Interrupt(200)])
    last = checkpoints_in(run / "checkpoints")[-1]
    (last / part).write_bytes(b"PK torn")
    with pytest.raises(
        BadFile, match=rf"checkpoint .*{last.name} is damaged .* remove it to go on"
    ):
        train(run)
    shutil.rmtree(last)
    assert train(run)["steps"] >= 256


def test_damaged_evaluations_are_named(tmp_path, hub):
    config = config_of(tmp_path, hub, checkpoint_every=64, eval_every=64)
    run = start_run(config, [], tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(run, [Interrupt(200)])
    (run / "evaluations.npz").write_bytes(b"PK torn")
    with pytest.raises(BadFile, match=r"evaluations.npz is damaged .* remove it to go on without"):
        train(run)


def test_a_training_that_a_callback_ends_is_over(tmp_path, hub):
    class Enough(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 70

    config = config_of(tmp_path, hub, checkpoint_every=32)
    run = start_run(config, [], tmp_path / "runs")
    assert train(run, [Enough()])["steps"] == 70
    assert [path.name for path in checkpoints_in(run / "checkpoints")] == ["64", "70"]


def test_a_run_that_goes_on_keeps_files_that_are_not_its_own(tmp_path, hub):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(run, [Interrupt(64)])
    (run / ".git").mkdir()
    foreign = [run / ".git" / "HEAD", run / ".gitignore", run / ".notes.txt"]
    own = [run / ".result.json.ab12cd_9", run / ".model.zip.abcdefgh"]
    for path in (*foreign, *own):
        path.write_text("mine")
    train(run)
    assert all(path.read_text() == "mine" for path in foreign)
    assert not any(path.exists() for path in own)


def test_a_finished_run_without_a_checkpoint_is_not_begun_again(tmp_path, hub):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    train(run)
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(BadFile, match="has no checkpoint to go on from; .* begins another run"):
        extend_run(run, 512)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_kill_while_a_run_is_extended_leaves_no_run_that_is_finished_too_early(
    tmp_path, hub, monkeypatch
):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    first = train(run)
    with monkeypatch.context() as patch:
        patch.setattr(extended_run, "write_atomically", _killed)
        with pytest.raises(KeyboardInterrupt):
            extend_run(run, 512)
    again = train(run)
    assert {**again, "wall_s": 0, "steps_per_s": 0} == {**first, "wall_s": 0, "steps_per_s": 0}


def _killed(*_args):
    raise KeyboardInterrupt


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_a_run_in_training_is_not_extended(tmp_path, hub, monkeypatch):
    run = start_run(config_of(tmp_path, hub), [], tmp_path / "runs")
    monkeypatch.setattr(run_folder, "PATIENCE_S", 0.0)
    with lock_folder(run, "held"), pytest.raises(FolderInUse, match="is being trained by another"):
        extend_run(run, 512)
