"""Hubs and agents on Hugging Face: one spelling, and a sentence for everything that goes wrong."""

import io
from pathlib import Path

import pytest
import torch
import yaml
from stable_baselines3 import A2C, PPO

from hubrl import BadConfig, BadFile, Hub, OutputExists, load_agent
from hubrl.experiments.config import load_hub, read_config
from hubrl.formats.schema import write_yaml
from hubrl.sharing import agent_model_card, hub_model_card, pull_folder, search_agents


def tiny_zip(algorithm, seed=1):
    saved = io.BytesIO()
    algorithm(
        "MlpPolicy", "CartPole-v1", seed=seed, policy_kwargs={"net_arch": [4]}, device="cpu"
    ).save(saved)
    return saved.getvalue()


@pytest.fixture(scope="module")
def zips():
    return {"one.zip": tiny_zip(PPO), "two.zip": tiny_zip(A2C, seed=2)}


@pytest.fixture
def hub(zips, tmp_path):
    for name, raw in zips.items():
        (tmp_path / name).write_bytes(raw)
    made = Hub.from_agents([tmp_path / "one.zip", tmp_path / "two.zip"])
    made[0].card = made[0].card.model_copy(
        update={
            "task": "CartPole-v1",
            "return_mean": 21.5,
            "return_std": 1.25,
            "episodes": 10,
            "licence": "MIT",
            "notes": "of a | test",
        }
    )
    return made


def same_weights(one, other):
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_hub_is_pushed_and_loaded_with_its_model_card(hub, local_hub):
    location = hub.push_to_hub("me/hub")
    assert location.startswith("hf://me/hub@")
    loaded = Hub.load("hf://me/hub")
    assert loaded.names == ["one", "two"]
    assert same_weights(loaded[0], hub[0])
    _, files = local_hub.at("me/hub", "main")
    assert sorted(files) == [
        "README.md", "hub.yaml", "one.safetensors", "one.yaml", "two.safetensors", "two.yaml",
    ]  # fmt: skip
    _, front, body = files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "hubrl"
    assert {"reinforcement-learning", "CartPole-v1"} <= {*data["tags"]}
    assert data["license"] == "other", "one source is MIT, the other's licence is not stated"
    metric = data["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("mean_reward", "21.50 +/- 1.25")
    assert 'hubrl.Hub.load("hf://me/hub")' in body
    assert "of a \\| test" in body


def test_a_smaller_hub_leaves_no_old_source_behind_and_old_commits_stay(hub, local_hub):
    first = hub.push_to_hub("me/hub")
    hub[:1].push_to_hub("hf://me/hub", licence="mit")
    assert Hub.load("hf://me/hub").names == ["one"]
    _, files = local_hub.at("me/hub", "main")
    assert not [name for name in files if name.startswith("two")]
    assert Hub.load(first).names == ["one", "two"]


def test_one_source_of_a_hub_is_an_agent(hub, local_hub):
    hub.push_to_hub("me/hub")
    assert load_agent("hf://me/hub/two.yaml").name == "two"
    with pytest.raises(
        BadFile, match=r"hf://me/hub is a hub of 2 sources; .* hf://me/hub/one\.yaml"
    ):
        load_agent("hf://me/hub")
    hub[:1].push_to_hub("me/single")
    assert same_weights(load_agent("hf://me/single"), hub[0])


def test_a_file_of_a_repository_is_named_with_its_revision(zips, local_hub):
    old = local_hub.put("me/two", {"one.zip": zips["one.zip"]})
    local_hub.put("me/two", zips)
    assert load_agent("hf://me/two/two.zip").card.algorithm == "A2C"
    assert load_agent(Path("hf://me/two/two.zip")).name == "two"
    assert load_agent(f"hf://me/two@{old}").name == "two", "of the repository"
    with pytest.raises(BadFile, match=r"holds 2 zips .* as hf://me/two/one\.zip"):
        load_agent("hf://me/two")
    with pytest.raises(
        BadFile, match=r"hf://me/two/three\.zip is not in the repository; it has one\.zip, two\.zip"
    ):
        load_agent("hf://me/two/three.zip")


def test_a_pair_is_spelled_alike_everywhere(zips, local_hub, tmp_path, monkeypatch):
    for name, raw in zips.items():
        (tmp_path / name).write_bytes(raw)
    statistics = tmp_path / "missing.pkl"
    for spelled in (f"{tmp_path / 'one.zip'},{statistics}", (tmp_path / "one.zip", statistics)):
        with pytest.raises(BadFile, match=r"missing\.pkl"):
            load_agent(spelled)
        with pytest.raises(BadFile, match=r"missing\.pkl"):
            Hub.from_agents([spelled])
    (tmp_path / "one,two.zip").write_bytes(zips["one.zip"])
    assert load_agent(str(tmp_path / "one,two.zip")).name == "one-two"
    with pytest.raises(BadConfig, match="expected an agent: a file or folder, hf://owner/name"):
        load_agent(("a", "b", "c"))


def test_a_config_names_a_hub_and_agents_of_hugging_face(hub, zips, local_hub, tmp_path):
    hub.push_to_hub("me/hub")
    local_hub.put("me/two", zips)
    fields = {"task": "CartPole-v1", "steps": 10}
    path = tmp_path / "run.yaml"
    path.write_text(write_yaml({**fields, "hub": "hf://me/hub"}))
    assert load_hub(read_config(path)).names == ["one", "two"]
    path.write_text(write_yaml({**fields, "agents": ["hf://me/two/two.zip", "one.zip"]}))
    assert load_hub(read_config(path)).names == ["two", "one"]


def test_the_command_line_pushes_shows_and_pulls(hub, local_hub, run):
    hub.save("mine")
    code, out, _ = run("hub", "push", "mine", "me/hub", "--licence", "mit")
    assert (code, "hf://me/hub@" in out) == (0, True)
    code, out, _ = run("hub", "show", "hf://me/hub")
    assert code == 0
    assert "two" in out
    assert run("hub", "pull", "hf://me/hub", "copy")[0] == 0
    assert Hub.load("copy").names == ["one", "two"]
    assert Path("copy/README.md").exists()
    assert not Path("copy/one.yaml").is_symlink()
    code, _, err = run("hub", "pull", "hf://me/hub", "copy")
    assert (code, "copy exists" in err) == (2, True)
    code, out, _ = run("hub", "build", "grown", "--agent", "hf://me/hub/one.yaml")
    assert code == 0


def test_candidates_are_found_by_task(local_hub, run):
    card = {"model-index": [{"name": "x", "results": [{
        "task": {"type": "reinforcement-learning"}, "dataset": {"name": "Hopper-v4", "type": "Hopper-v4"},
        "metrics": [{"type": "mean_reward", "value": "2400.00 +/- 3.00"}]}]}]}  # fmt: skip
    local_hub.listed = [
        {"id": "a/ppo-Hopper-v3", "library_name": "stable-baselines3", "tags": ["Hopper-v3"], "downloads": 9},
        {"id": "b/hopper", "library_name": "ml-agents", "tags": ["Hopper-v4"], "downloads": 8},
        {"id": "c/sac-Hopper-v4", "library_name": "stable-baselines3", "tags": ["Hopper-v4"], "downloads": 1, "cardData": card},
    ]  # fmt: skip
    found = search_agents("envs.mujoco:hubrl/Hopper-v4")
    assert [one.location for one in found] == ["hf://c/sac-Hopper-v4", "hf://a/ppo-Hopper-v3"]
    assert found[0].returns == "2400.00 +/- 3.00"
    code, out, _ = run("hub", "search", "--task", "Hopper-v4")
    assert code == 0
    assert "hf://c/sac-Hopper-v4" in out
    code, out, _ = run("hub", "search", "--task", "Ant-v5")
    assert "no agent" in out


def test_what_cannot_be_fetched_is_a_sentence(zips, local_hub, monkeypatch):
    with pytest.raises(
        BadFile,
        match="hf://me/none cannot be fetched: there is no such repository, or it is private",
    ):
        load_agent("hf://me/none")
    local_hub.put("me/two", zips)
    with pytest.raises(BadFile, match="hf://me/two@v9 cannot be fetched: it has no such revision"):
        load_agent("hf://me/two@v9")
    local_hub.gated.add("me/two")
    with pytest.raises(BadFile, match="it is gated; ask for access on its page"):
        Hub.load("hf://me/two")
    for spelled in ("hf://agent", "hf://me/two/../../etc", "hf:///etc/passwd"):
        with pytest.raises(BadConfig, match="was given; expected hf://owner/name"):
            load_agent(spelled)


def test_offline_what_is_in_the_cache_is_read(zips, local_hub, monkeypatch):
    from huggingface_hub import constants

    local_hub.put("me/two", zips)
    load_agent("hf://me/two/one.zip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_agent("hf://me/two/two.zip").name == "two"
    with pytest.raises(
        BadFile,
        match="it is not in the local cache and the hub cannot be reached; run again online",
    ):
        load_agent("hf://me/other")


def test_an_unreachable_hub_is_a_sentence(local_hub, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its attempts
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadFile, match="the hub cannot be reached"):
        load_agent("hf://me/two")
    with pytest.raises(
        BadFile, match="hf://me/hub cannot be written to: the hub cannot be reached"
    ):
        hub.push_to_hub("me/hub")
    with pytest.raises(BadFile, match="cannot be searched: the hub cannot be reached"):
        search_agents("Ant-v5")


def test_an_interrupted_download_is_a_sentence(zips, local_hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    local_hub.put("me/two", zips)
    load_agent("hf://me/two/one.zip")
    next((tmp_path / "cache").rglob("snapshots/*/two.zip")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadFile, match="an earlier download was interrupted and the hub cannot be reached"
    ):
        load_agent("hf://me/two/two.zip")


def test_a_damaged_copy_is_refused_by_its_sha256(zips, local_hub, tmp_path):
    local_hub.put("me/two", zips)
    load_agent("hf://me/two/one.zip")
    blob = next((tmp_path / "cache").rglob("snapshots/*/one.zip")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(
        BadFile, match=r"is damaged: one\.zip has another sha256 than on the hub; remove"
    ):
        load_agent("hf://me/two/one.zip")


def test_weights_that_are_not_the_cards_are_refused(hub, local_hub):
    hub.push_to_hub("me/hub")
    _, files = local_hub.at("me/hub", "main")
    local_hub.put("me/hub", {**files, "one.safetensors": files["two.safetensors"]})
    with pytest.raises(BadFile, match="hf://me/hub/one.safetensors"):
        Hub.load("hf://me/hub")


def test_a_push_without_access_or_to_no_repository_is_a_sentence(hub, local_hub):
    local_hub.read_only = True
    with pytest.raises(BadFile, match="cannot be written to: access was denied; log in"):
        hub.push_to_hub("me/hub")
    with pytest.raises(BadConfig, match="The repository 'hub' was given; expected owner/name"):
        hub.push_to_hub("hub")


def test_a_strangers_card_puts_no_code_into_a_model_card(hub):
    hostile = 'A"); import os #\n```\n<script>'
    cards = [source.card.model_copy(update={"task": hostile, "notes": hostile}) for source in hub]
    config = {"task": hostile, "steps": 1}
    for text in (hub_model_card("me/x", cards), agent_model_card("me/x", cards[0], cards, config)):
        code = text.split("```python")[1].split("```")[0]
        assert "import os" not in code
        assert "<script>" not in text.split("## Config")[0]
        assert text.split("## Config")[0].count("\n```") == 2
    assert "\n````yaml\n" in text
    assert text.endswith("\n````\n")


def test_pull_writes_whole_folders(hub, local_hub, tmp_path):
    hub.push_to_hub("me/hub")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExists, match="there exists"):
        pull_folder("hf://me/hub", tmp_path / "there")
    pull_folder("hf://me/hub", tmp_path / "there", overwrite=True)
    assert Hub.load(tmp_path / "there").names == ["one", "two"]


def test_pull_leaves_other_files_as_they_are(hub, local_hub, tmp_path):
    hub.push_to_hub("me/hub")
    mine = [tmp_path / "there" / "notes.txt", tmp_path / "there" / "data" / "curve.csv"]
    mine[1].parent.mkdir(parents=True)
    for path in mine:
        path.write_text("mine")
    with pytest.raises(OutputExists, match="there exists and is no hub or agent, so it is not"):
        pull_folder("hf://me/hub", tmp_path / "there", overwrite=True)
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    old = load_agent(tmp_path / "one.zip") if (tmp_path / "one.zip").exists() else hub["one"]
    Hub([old]).save(tmp_path / "old")
    for path in (tmp_path / "old").iterdir():
        path.rename(tmp_path / "there" / path.name)
    pull_folder("hf://me/hub", tmp_path / "there", overwrite=True)
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert Hub.load(tmp_path / "there").names == ["one", "two"]
    assert not (tmp_path / "there" / "old.yaml").exists()


def test_a_run_is_pushed_with_its_curve_its_video_and_its_sources(hub, local_hub, run, tmp_path):
    hub.save("mine")
    config = {
        "task": "CartPole-v1", "hub": str(tmp_path / "mine"), "steps": 64, "eval_every": 32, "eval_episodes": 1,
        "algorithm_kwargs": {"n_steps": 32, "batch_size": 32},
    }  # fmt: skip
    Path("mine.yaml").write_text(write_yaml(config))
    assert run("train", "mine.yaml", "--name", "first")[0] == 0
    Path("runs/first/video.mp4").write_bytes(b"film")
    code, _, err = run("push", "runs/first", "me/run")
    assert code == 0, err
    _, files = local_hub.at("me/run", "main")
    assert files["replay.mp4"] == b"film"
    assert not [name for name in files if name.endswith((".zip", ".pkl"))]
    text = files["README.md"].decode()
    assert "with a hub of 2 agents" in text
    assert "hf://me/run" in text
    assert "hub: hub\n" in text
    assert str(tmp_path) not in text
    assert ("learning_curve.png" in files) == ("![Return" in text)
    agent = load_agent("hf://me/run")
    assert agent.card.task == "CartPole-v1"
    mine = load_agent("runs/first")
    observations = torch.randn(20, 4).numpy()
    assert (
        agent.predict(observations, deterministic=True)[0]
        == mine.predict(observations, deterministic=True)[0]
    ).all()
    code, _, err = run("evaluate", "hf://me/run", "--episodes", 1)
    assert code == 0, err
