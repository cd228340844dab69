"""Folders and repositories with agents: RL Zoo runs, checkpoints, downloads from Hugging Face."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from read_agents import assert_alike
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from untrained import ARM, FLAT, SMALLEST, Noise, draw, normalised, untrained

from hubrl import Hub
from hubrl.errors import BadConfig, BadFile
from hubrl.reading import read_agent, read_live


@pytest.fixture
def three_agents():
    """Three states of one training: a model and its VecNormalize's statistics, three times."""
    agents = []
    for shift in (0.0, 10.0, 100.0):
        vec = normalised()
        vec.obs_rms.mean += shift
        agents.append((untrained(PPO, env=vec), vec))
    return agents


def assert_is(source, agent):
    model, vec = agent
    observations = draw(FLAT, 50) + vec.obs_rms.mean.astype(np.float32)
    assert_alike(source, model, observations, vec.normalize_obs(observations))


def test_a_run_folder_of_the_rl_zoo_is_read(three_agents, tmp_path):
    last, best, checkpoint = three_agents
    (tmp_path / "Toy-v0").mkdir()
    (tmp_path / "Toy-v0" / "config.yml").write_text("{}")
    last[0].save(tmp_path / "Toy-v0.zip")
    last[1].save(tmp_path / "Toy-v0" / "vecnormalize.pkl")
    best[0].save(tmp_path / "best_model.zip")
    checkpoint[0].save(tmp_path / "rl_model_800_steps.zip")
    checkpoint[1].save(tmp_path / "rl_model_vecnormalize_800_steps.pkl")
    np.savez(tmp_path / "evaluations.npz", timesteps=[800])

    assert_is(read_agent(tmp_path), last)
    assert read_agent(tmp_path).name == "Toy-v0"
    assert_is(read_agent(tmp_path / "best_model.zip"), (best[0], last[1]))
    assert_is(read_agent(tmp_path / "rl_model_800_steps.zip"), checkpoint)


@pytest.mark.parametrize("unzipped", [True, False])
def test_a_download_from_hugging_face_is_read(three_agents, unzipped, tmp_path):
    model, vec = three_agents[1]
    model.save(tmp_path / "ppo-Toy-v0.zip")
    vec.save(tmp_path / "vec_normalize.pkl")
    if unzipped:
        shutil.unpack_archive(tmp_path / "ppo-Toy-v0.zip", tmp_path / "ppo-Toy-v0")
    with zipfile.ZipFile(tmp_path / "train_eval_metrics.zip", "w") as metrics:
        metrics.writestr("evaluations.npz", b"")
    (tmp_path / "config.json").write_text("{}")
    assert_is(read_agent(tmp_path), three_agents[1])
    assert_is(read_agent(tmp_path / "ppo-Toy-v0.zip"), three_agents[1])


def test_the_files_of_sb3s_checkpoint_callback_belong_together(tmp_path):
    vec = normalised()
    model = untrained(PPO, env=vec)
    model.learn(
        16,
        callback=CheckpointCallback(8, str(tmp_path), name_prefix="walk", save_vecnormalize=True),
    )
    assert sorted(path.name for path in tmp_path.glob("*.pkl")) == [
        "walk_vecnormalize_16_steps.pkl",
        "walk_vecnormalize_8_steps.pkl",
    ]
    early, late = (read_agent(tmp_path / f"walk_{steps}_steps.zip") for steps in (8, 16))
    assert (early.card.steps, late.card.steps) == (8, 16)
    assert not torch.equal(
        early.tensors()["normaliser.mean_0"], late.tensors()["normaliser.mean_0"]
    )
    np.testing.assert_array_equal(late.tensors()["normaliser.mean_0"], vec.obs_rms.mean)


def test_statistics_of_one_agent_are_not_given_to_another(three_agents, tmp_path):
    for name, (model, _) in zip(("left", "right"), three_agents, strict=False):
        model.save(tmp_path / f"{name}.zip")
    three_agents[0][1].save(tmp_path / "left.vecnormalize.pkl")
    assert_is(read_agent(tmp_path / "left.zip"), three_agents[0])
    assert read_agent(tmp_path / "right.zip").card.normalisation is None


def test_a_pair_names_the_statistics_itself(three_agents, tmp_path):
    model, vec = three_agents[2]
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "elsewhere.pkl")
    assert_is(
        Hub.from_agents([(tmp_path / "agent.zip", tmp_path / "elsewhere.pkl")])[0], three_agents[2]
    )


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_an_agent_that_learned_through_a_hub_is_a_source_itself(level, tmp_path):
    hub = Hub.from_agents([untrained(PPO), untrained(A2C)], names=["one", "two"])
    model = PPO(
        env=Noise(FLAT, ARM), device="cpu", **SMALLEST[PPO], **hub.agent(PPO, level=level)
    ).learn(8)
    model.save(tmp_path / "agent.zip")
    observations = draw(FLAT, 50)
    expected, _ = model.predict(observations, deterministic=True)
    for source in (read_agent(tmp_path / "agent.zip"), read_live(model, "live")):
        np.testing.assert_allclose(
            source.predict(observations, deterministic=True)[0], expected, atol=1e-5
        )


def test_a_repository_of_hugging_face_is_read_as_the_folder_it_is(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    PPO("MlpPolicy", "CartPole-v1", seed=3, policy_kwargs={"net_arch": [8]}, device="cpu").save(
        tmp_path / "ppo-CartPole-v1.zip"
    )
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision))
        assert "*.py" not in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    source = read_agent("hf://someone/ppo-CartPole-v1")
    assert source.name == "ppo-CartPole-v1"
    assert Hub.from_agents(["hf://someone/ppo-CartPole-v1@v2"], names=["mine"]).names == ["mine"]
    assert asked == [("someone/ppo-CartPole-v1", None), ("someone/ppo-CartPole-v1", "v2")]


def test_a_repository_that_cannot_be_fetched_is_a_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        BadFile, match=r"hf://someone/agent cannot be fetched: OSError, no connection"
    ):
        read_agent("hf://someone/agent")
    with pytest.raises(BadConfig, match="'hf://agent' was given; expected hf://owner/name"):
        read_agent("hf://agent")
