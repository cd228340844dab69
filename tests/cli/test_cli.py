"""The command line: what it prints, its exit codes, and one sentence for every mistake."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import A2C, PPO

from hubrl import Hub
from hubrl.experiments import evaluation
from hubrl.formats.schema import write_yaml
from hubrl.methods import available

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """Two tiny agents' zips."""
    folder = tmp_path_factory.mktemp("agents")
    for algorithm, name in ((PPO, "one"), (A2C, "two")):
        algorithm(
            "MlpPolicy", "CartPole-v1", seed=1, policy_kwargs={"net_arch": [8]}, device="cpu"
        ).save(folder / f"{name}.zip")
    return folder


@pytest.fixture
def hub(agents, tmp_path):
    """A hub of both, as a folder."""
    folder = tmp_path / "hub"
    Hub.from_agents([agents / "one.zip", agents / "two.zip"]).save(folder)
    return folder


def test_a_hub_is_built_shown_tried_checked_and_grown(run, agents):
    code, out, _ = run(
        "hub", "build", "hubs/mine", "--agent", agents / "one.zip", "--agent", agents / "two.zip"
    )
    assert code == 0
    assert "PPO" in out
    assert sorted(path.name for path in Path("hubs/mine").iterdir()) == [
        "hub.yaml",
        "one.safetensors",
        "one.yaml",
        "two.safetensors",
        "two.yaml",
    ]
    code, out, _ = run("hub", "try", "hubs/mine", "--task", "CartPole-v1", "--episodes", 2)
    assert code == 0
    assert "one" in out
    assert "mean return" in out
    assert run("hub", "add", "hubs/mine", "--agent", agents / "one.zip", "--name", "three")[0] == 0
    assert Hub.load("hubs/mine").names == ["one", "two", "three"]
    code, out, err = run("hub", "check", "hubs/mine")
    assert code == 2
    assert "its card has no task or no return" in out
    assert err.strip() == "No source of hubs/mine was replayed; the table says why."


def test_check_finds_a_source_that_differs_from_its_card(run, hub):
    card = yaml.safe_load((hub / "one.yaml").read_text())
    card |= {"task": "CartPole-v1", "return_mean": 499.0, "return_std": 1.0, "episodes": 2}
    (hub / "one.yaml").write_text(write_yaml(card))
    code, out, _ = run("hub", "check", hub)
    assert code == 1
    assert "DIFFERS" in out


def test_a_run_is_trained_evaluated_and_repeated(run, hub, tmp_path):
    config = {
        "task": "CartPole-v1",
        "hub": str(hub),
        "steps": 128,
        "algorithm_kwargs": {"n_steps": 32, "batch_size": 32},
        "eval_episodes": 1,
    }
    (tmp_path / "mine.yaml").write_text(write_yaml(config))
    code, out, _ = run("train", "mine.yaml", "--set", "seed=3", "--set", "steps=64")
    assert code == 0
    assert "runs/mine_1" in out
    resolved = yaml.safe_load(Path("runs/mine_1/config.yaml").read_text())
    assert (resolved["seed"], resolved["algorithm"], resolved["method"]) == (
        3,
        "ppo",
        "hub-pathway",
    ), "defaults are in it too"
    for more in (("--set", "steps=99"), ("--name", "other")):
        code, _, err = run("train", "runs/mine_1", *more)
        assert code == 2
        assert "keeps its config and name; leave out --set and --name" in err
    code, _, err = run("evaluate", "runs/mine_1", "--kwargs", "gravity=1")
    assert code == 2
    assert "with --kwargs or --atari name a task too" in err
    code, out, _ = run("evaluate", "runs/mine_1", "--episodes", 2)
    assert code == 0
    assert "mine_1" in out
    assert run("train", "runs/mine_1/config.yaml")[0] == 0
    assert Path("runs/mine_2/result.json").exists()
    assert (
        run("hub", "build", "hubs/next", "--agent", "runs/mine_1", "--agent", "runs/mine_2")[0] == 0
    )
    learned = Hub.load("hubs/next")
    assert learned.names == ["mine_1", "mine_2"]
    assert (learned[0].card.task, learned[0].card.episodes, learned[0].card.steps) == (
        "CartPole-v1",
        1,
        64,
    )
    assert learned[0].card.return_mean is not None


def test_evaluate_plays_a_zip_a_hubs_source_and_a_run_on_another_task(run, agents, hub):
    for agent in (agents / "one.zip", hub / "one"):
        code, out, _ = run("evaluate", agent, "--task", "CartPole-v1", "--episodes", 2)
        assert code == 0
        assert "one" in out


def test_methods_are_listed(run):
    code, out, _ = run("methods")
    assert code == 0
    assert all(name in out for name in available())


MISTAKES = {
    "no such file": (("train", "none.yaml"), "There is no file none.yaml."),
    "no such agent": (
        ("evaluate", "none.zip", "--task", "CartPole-v1"),
        "There is no file none.zip.",
    ),
    "no such hub": (("hub", "show", "none"), "none is no hub: it has no hub.yaml"),
    "no task": (("evaluate", "{hub}/one"), "names no task; name one with --task"),
    "unknown task": (
        ("evaluate", "{hub}/one", "--task", "CartPol-v1"),
        "Did you mean 'CartPole-v1'?",
    ),
    "unfitting task": (
        ("hub", "try", "{hub}", "--task", "Pendulum-v1"),
        "No source of the hub fits the task.",
    ),
    "folder exists": (
        ("hub", "build", "{hub}", "--agent", "{agents}/one.zip"),
        "exists; choose another name",
    ),
    "one name twice": (
        ("hub", "build", "new", "--agent", "{agents}/one.zip", "--agent", "{agents}/one.zip"),
        "Two sources are called 'one'",
    ),
    "bad change": (("train", "{config}", "--set", "seed"), "expected name=value"),
    "bad field": (
        ("train", "{config}", "--set", "sed=1"),
        "Unknown field 'sed'. Did you mean 'seed'?",
    ),
    "bad method": (("train", "{config}", "--set", "method=hub"), "Unknown method 'hub'"),
    "bad top_k": (
        ("train", "{config}", "--set", "options.top_k=9"),
        "top_k=9 was given for a hub of 2 sources",
    ),
    "bad kwargs": (
        ("hub", "try", "{hub}", "--task", "CartPole-v1", "--kwargs", "gravity"),
        "expected name=value",
    ),
    "bad run name": (
        ("train", "{config}", "--name", "../mine"),
        "Run name '../mine' was given; expected a bare name",
    ),
    "option of the outputs": (
        ("train", "{config}", "--set", "options.residul=false"),
        "Did you mean 'residual'?",
    ),
    "no device": (
        ("train", "{config}", "--set", "device=gpu"),
        ": device: 'gpu' is no device of torch; expected auto, cpu, cuda or the like",
    ),
    "no GPU": (
        ("train", "{config}", "--set", "device=cuda:9"),
        "device: cuda:9 was given and torch has",
    ),
    "run exists": (
        ("train", "{config}", "--name", "exists", "--runs", "{hub}/.."),
        "exists exists; choose another name, or remove it.",
    ),
    "a range as widths": (
        ("distill", "none", "student.zip", "--net-arch", "64-64"),
        "expected widths like 64,64",
    ),
    "no width": (
        ("distill", "none", "student.zip", "--net-arch", "64,0"),
        "expected widths like 64,64",
    ),
    "export of no run": (("export", "none", "plain.zip"), "none is no run: it has no config.yaml"),
    "unknown command": (("trian",), "trian"),
    "no agent": (("hub", "build", "new"), "--agent"),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(
    run, hub, agents, tmp_path, arguments, sentence
):
    (tmp_path / "config.yaml").write_text(
        write_yaml({"task": "CartPole-v1", "hub": str(hub), "steps": 64})
    )
    (tmp_path / "exists").mkdir()
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    given = [
        argument.format(hub=hub, agents=agents, config=tmp_path / "config.yaml")
        for argument in arguments
    ]
    code, out, err = run(*given)
    assert code == 2
    assert sentence in err
    assert "watch it" not in out
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - before
    assert not left - {Path("runs")}


@pytest.mark.parametrize(
    "damage", ["changed weights", "changed card", "newer card", "newer hub", "missing weights"]
)
def test_a_damaged_hub_is_one_line_with_exit_code_2(run, hub, damage):
    weights, card = hub / "one.safetensors", hub / "one.yaml"
    match damage:
        case "changed weights":
            raw = bytearray(weights.read_bytes())
            raw[-1] ^= 1
            weights.write_bytes(raw)
        case "changed card":
            plain = yaml.safe_load(card.read_text())
            card.write_text(write_yaml({**plain, "sha256": "0" * 64}))
        case "newer card":
            card.write_text(write_yaml({**yaml.safe_load(card.read_text()), "format": 99}))
        case "newer hub":
            (hub / "hub.yaml").write_text(
                write_yaml({**yaml.safe_load((hub / "hub.yaml").read_text()), "format": 99})
            )
        case _:
            weights.unlink()
    code, _, err = run("hub", "show", hub)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert any(part in err for part in ("sha256", "format 99", "no readable file"))


def test_what_is_no_mistake_of_the_users_ends_in_exit_code_1(run, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(evaluation, "try_hub", fail)
    code, _, err = run("hub", "try", hub, "--task", "CartPole-v1")
    assert code == 1
    assert "RuntimeError: a bug" in err


def test_the_installed_command_runs():
    command = shutil.which("hubrl", path=str(Path(sys.executable).parent))
    arguments = [command] if command else [sys.executable, "-m", "hubrl"]
    done = subprocess.run([*arguments, "methods"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "hub-pathway" in done.stdout


def test_files_in_the_working_directory_take_no_packages_place(tmp_path):
    command = shutil.which("hubrl", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("hubrl is not installed; python -m puts the working directory first itself")
    (tmp_path / "tensorboard.py").write_text("open('executed', 'w')")
    done = subprocess.run(
        [command, "explain", "."], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "is no run: it has no config.yaml" in done.stderr
    assert not (tmp_path / "executed").exists()


def test_a_source_is_added_adapted(run, hub, agents):
    code, _, err = run(
        "hub",
        "add",
        hub,
        "--agent",
        agents / "one.zip",
        "--name",
        "turned",
        "--observes",
        "1-4",
        "--order",
        "1,0",
    )
    assert code == 0, err
    card = Hub.load(hub)["turned"].card
    assert card.preprocessing[0].indices == (1, 2, 3, 4)
    assert card.action_map.order == (1, 0)
    code, _, err = run(
        "hub", "add", hub, "--agent", agents / "one.zip", "--name", "other", "--signs", "1,-1"
    )
    assert code == 2
    assert "has 2 signs for Discrete(2)" in err
    code, _, err = run(
        "hub", "add", hub, "--agent", agents / "one.zip", "--name", "other", "--order", "one"
    )
    assert code == 2
    assert "'one' was given; expected whole numbers like 0-16 or 3,1,2." in err
    code, _, err = run(
        "hub", "add", hub, "--agent", agents / "one.zip", "--name", "other", "--observes=-1"
    )
    assert code == 2
    assert "Input should be greater than or equal to 0" in err
    assert Hub.load(hub).names == ["one", "two", "turned"]
    name = ("--agent", agents / "one.zip", "--name", "filled")
    code, _, err = run("hub", "add", hub, *name, "--observes", "0,1", "--constants", "2-3=0")
    assert code == 0, err
    assert Hub.load(hub)["filled"].card.preprocessing[1].values == {2: 0.0, 3: 0.0}
    code, _, err = run("hub", "add", hub, *name, "--constants", "2")
    assert code == 2
    assert "--constants '2' was given; expected entries and values like 26=1,27-32=0." in err


def test_a_study_that_cannot_be_is_refused(run, tmp_path):
    (tmp_path / "study.yaml").write_text("seeds: [1]")
    code, _, err = run("study", "study.yaml")
    assert code == 2
    assert "study.yaml: agents: Field required." in err
