"""Manners of the command line: version, short help, JSON, silence, completion."""

import json
import os
import subprocess
import sys

import pytest
from stable_baselines3 import PPO

import hubrl
from hubrl import Hub
from hubrl.cli import console
from hubrl.experiments.config import read_config
from hubrl.formats.schema import write_yaml


@pytest.fixture
def hub(tmp_path):
    """A hub of one tiny agent, as a folder."""
    agent = PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=1)
    Hub.from_agents([agent], ["one"]).save(tmp_path / "hub")
    return tmp_path / "hub"


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"hubrl {hubrl.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["train"], ["hub"], ["hub", "show"], ["methods"]])
def test_help_is_short_and_long(run, command):
    code, out, _ = run(*command, "-h")
    assert code == 0
    assert out.lstrip().startswith("Usage: hubrl")
    assert run(*command, "--help")[1] == out


def test_results_are_one_json_document(run, hub):
    code, out, _ = run("hub", "show", hub, "--json")
    assert code == 0
    assert [card["name"] for card in json.loads(out)] == ["one"]
    played = json.loads(run("evaluate", hub / "one", "--task", "CartPole-v1", "--json")[1])
    assert (played[0]["agent"], len(played[0]["returns"])) == ("one", 10)
    (checked,) = json.loads(run("--json", "hub", "check", hub)[1])
    assert (checked["source"], checked["agrees"]) == ("one", None)
    assert {"hub-pathway", "scratch"} <= {
        one["method"] for one in json.loads(run("methods", "--json")[1])
    }
    described = json.loads(run("methods", "single", "--json")[1])
    assert described["method_options"][0]["name"] == "source"


def test_notes_stand_on_stderr_beside_json_and_nowhere_if_quiet(run, hub, tmp_path):
    config = {"task": "CartPole-v1", "hub": str(hub), "steps": 64, "eval_episodes": 1}
    config["algorithm_kwargs"] = {"n_steps": 32, "batch_size": 32}
    (tmp_path / "mine.yaml").write_text(write_yaml(config))
    code, out, err = run("train", "mine.yaml", "--json")
    assert code == 0
    assert json.loads(out)["steps"] == 64
    assert "watch it with" in err
    code, out, err = run("train", "mine.yaml", "--quiet")
    assert code == 0
    assert "watch it with" not in out + err
    assert out.startswith("task")
    assert "eval_mean" in out


def test_a_finished_run_gets_more_steps(run, hub, tmp_path):
    config = {"task": "CartPole-v1", "hub": str(hub), "steps": 999, "eval_episodes": 1}
    config["algorithm_kwargs"] = {"n_steps": 32, "batch_size": 32}
    (tmp_path / "mine.yaml").write_text(write_yaml(config))
    assert run("train", "mine.yaml", "--name", "mine", "--steps", "64")[0] == 0
    assert json.loads((tmp_path / "runs/mine/result.json").read_text())["steps"] == 64
    code, out, err = run("train", "runs/mine", "--steps", "+64", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 128
    assert (tmp_path / "runs/mine/monitor-from-64").exists(), "it went on from its end"
    assert read_config(tmp_path / "runs/mine/config.yaml").steps == 128
    code, _, err = run("train", "runs/mine", "--steps", "100")
    assert code == 2
    assert "100 steps were given for runs/mine, which has 128; give more, as +128." in err
    code, _, err = run("train", "runs/mine", "--steps", "more")
    assert code == 2
    assert "--steps 'more' was given; expected 100_000 or +100_000." in err
    code, _, err = run("train", "hub", "--steps", "+1")
    assert code == 2


def test_options_of_a_method_are_described(run):
    code, out, _ = run("methods", "hub-pathway")
    assert code == 0
    words = " ".join(out.split())
    assert "top_k whole number or none None Active pathways for an observation" in words
    assert "hold number of at least 1 5.0 Steps that a drawn pathway acts" in words
    assert "teach_coef" in out
    assert "FieldInfo" not in out
    assert run("methods", "hub-pathwy")[0] == 2


def test_the_shell_completes_commands_and_methods(run, monkeypatch):
    def completions(words):
        monkeypatch.setenv("_HUBRL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        return run()[1].split()

    assert completions("hubrl ev") == ["evaluate"]
    assert "zoo-tuning" in completions("hubrl methods zoo")


def test_a_progress_bar_ends_full_and_never_overflows(monkeypatch):
    seen = []

    class Bars(console.Progress):
        def update(self, task, **values):
            seen.append(values["completed"])
            super().update(task, **values)

    monkeypatch.setattr(console, "Progress", Bars)
    with console.progress_bar("run", 100) as on_step:
        on_step(64)
        on_step(128)
    assert seen == [64, 100, 100]


def test_nothing_turns_where_it_is_quiet(capsys):
    console.output.begin(json=False, quiet=True)
    with console.spinner("Reading"), console.progress_bar("run", 1) as on_step:
        on_step(1)
    assert capsys.readouterr().err == ""
    console.output.begin(json=False, quiet=False)


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], [], ["hub"], ["train", "-h"], ["hub", "try", "-h"]]
)
def test_a_command_that_computes_nothing_imports_no_torch(arguments):
    imported = run_and_list_modules(arguments, {})
    assert "hubrl.cli.app" in imported
    assert not imported & {"torch", "stable_baselines3", "gymnasium", "pandas"}


def test_the_completion_of_commands_imports_no_torch():
    given = {"_HUBRL_COMPLETE": "complete_bash", "COMP_WORDS": "hubrl ev", "COMP_CWORD": "1"}
    assert "torch" not in run_and_list_modules([], given)


def run_and_list_modules(arguments, variables):
    """The modules that a command has imported when it ends."""
    code = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: sys.stderr.write(json.dumps(sorted(sys.modules))))\n"
        "from hubrl.cli import main\n"
        f"sys.argv = ['hubrl', *{arguments}]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=True,
    )
    assert done.stdout
    return set(json.loads(done.stderr))


@pytest.mark.parametrize("command", [[], ["hub"]])
def test_a_group_without_a_command_prints_its_help_and_no_summary_is_cut(run, command):
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert out == run(*command, "--help")[1]
    assert "..." not in out.split("Commands:")[1]
