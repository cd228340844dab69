"""A study from its YAML file: every run once, tables that agree with the runs, mistakes in sentences."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from typer.testing import CliRunner
from untrained import normalised, untrained

from hubrl import BadConfig, BadFile, Hub, UnknownName
from hubrl.cli.app import app
from hubrl.experiments.config import parse_config
from hubrl.experiments.figures import write_reports
from hubrl.experiments.run_record import training_curve
from hubrl.experiments.statistics import difference, estimate, iqm, resampled, stratified
from hubrl.experiments.study import run_job, run_study
from hubrl.experiments.study_config import read_study
from hubrl.experiments.study_plan import plan
from hubrl.experiments.study_tables import RUN_COLUMNS, read_table
from hubrl.experiments.tables import (
    details,
    net_of_random,
    over_targets,
    seconds_to_scratch,
    side_by_side,
)
from hubrl.tasks.make_env import make_env

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))

TINY = {
    "seeds": [1, 2],
    "set": {
        "task": "CartPole-v1",
        "n_envs": 2,
        "steps": 384,
        "algorithm_kwargs": {"n_steps": 32, "policy_kwargs": {"net_arch": [8]}},
        "eval_episodes": 2,
        "eval_every": 192,
    },
    "agents": {"one": {"agent": "random:1"}, "other": {"agent": "random:2", "order": [1, 0]}},
    "hubs": {"pair": ["one", "other"]},
    "methods": {
        "scratch": {"set": {"method": "scratch"}},
        "residual": {"each_source": True, "set": {"method": "single"}},
        "hub-pathway": {"set": {"steps": 2560, "probe_share": 0.15}},
    },
    "cases": {
        "cart": {
            "hub": "pair",
            "methods": ["zero-shot", "oracle", "scratch", "residual", "hub-pathway"],
            "set": {},
        },
    },
}


def written(tmp_path, **changes):
    study = {**TINY, **changes}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def without_oracle():
    case = {
        **TINY["cases"]["cart"],
        "methods": ["zero-shot", "scratch", "residual", "hub-pathway"],
        "controls": True,
    }
    return {"cart": case}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_study_runs_what_is_missing_and_reports_it(tmp_path, monkeypatch):
    path = written(tmp_path, cases=without_oracle())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["study", str(path)])
    assert done.exit_code == 0, done.output
    results = tmp_path / "results" / "tiny"
    table = rows(results / "runs.csv")
    assert [row["method"] for row in table if row["seed"] == "1"] == [
        "scratch", "hub-pathway", "hub-pathway:mean-weights", "hub-pathway:shuffled-input", "residual:one", "residual:other", "zero-shot", "zero-shot:one", "zero-shot:other",
    ]  # fmt: skip
    hub = next(row for row in table if row["method"] == "hub-pathway")
    assert int(hub["probe_steps"]) > 0
    assert {
        "task",
        "hub",
        "algorithm",
        "steps",
        "mean_train_return",
        "final_return",
        "eval_return",
        "wall_s",
        "hubrl_version",
    } <= set(hub)
    (run,) = (tmp_path / "runs/tiny/cart/none/scratch").glob("1-*")
    scratch = next(row for row in table if row["method"] == "scratch" and row["seed"] == "1")
    assert float(scratch["mean_train_return"]) == pytest.approx(
        np.mean([value for _, value in training_curve(run)]), abs=0.01
    )
    best = max(
        float(row["eval_return"])
        for row in table
        if row["method"].startswith("zero-shot:") and row["seed"] == "1"
    )
    assert float(next(row for row in table if row["method"] == "zero-shot")["eval_return"]) == best
    curves = rows(results / "curves.csv")
    assert {row["kind"] for row in curves} == {"evaluation", "training"}
    assert {
        row["step"] for row in curves if row["kind"] == "evaluation" and row["method"] == "scratch"
    } == {"192", "384"}
    assert {row["pathway"] for row in rows(results / "pathways.csv")} >= {"one", "other", "fresh"}
    assert float(hub["first_quarter_return"]) == pytest.approx(
        np.mean(
            [
                value
                for step, value in training_curve(
                    *(tmp_path / "runs/tiny/cart/pair/hub-pathway").glob("1-*")
                )
                if step <= 640
            ]
        ),
        abs=0.01,
    )
    for figure in ("intervals", "curves"):
        assert (results / f"{figure}.png").stat().st_size > 1000
    assert "| cart | pair |" in (results / "table.md").read_text()

    before = (results / "runs.csv").read_bytes()
    plans = []
    run_study(
        path,
        folder=tmp_path / "elsewhere",
        results=results,
        on_plan=lambda *counts: plans.append(counts),
    )
    assert plans == [(10, 10)], (
        "what stands in the results is not run again, even where the runs are gone"
    )
    assert (results / "runs.csv").read_bytes() == before

    run_study(
        path,
        folder=tmp_path / "x",
        results=results,
        methods=["residual"],
        on_plan=lambda *counts: plans.append(counts),
    )
    assert plans[-1] == (4, 4)
    run_study(
        path,
        folder=tmp_path / "x",
        results=results,
        methods=["residual"],
        seeds=[2],
        on_plan=lambda *counts: plans.append(counts),
    )
    assert plans[-1] == (2, 2)

    changed = written(tmp_path, cases=without_oracle(), set={**TINY["set"], "steps": 128})
    run_study(
        changed,
        folder=tmp_path / "runs" / "tiny",
        results=results,
        jobs=1,
        on_plan=lambda *counts: plans.append(counts),
    )
    assert plans[-1] == (4, 10), (
        "other steps are other runs; what plays untouched stays, and what has steps of its own"
    )
    assert {row["steps"] for row in rows(results / "runs.csv") if row["method"] == "scratch"} == {
        "128"
    }


def test_random_play_and_a_human_players_score_are_rows(tmp_path):
    cases = {
        "cart": {"hub": "pair", "methods": ["random"], "set": {}},
        "freeway": {"hub": "pair", "methods": ["human"], "set": {}},
    }
    jobs = plan(written(tmp_path, cases=cases), tmp_path / "runs")
    one, two = (job for job in jobs if job.method == "random")
    assert one.hub == "none"
    (first,), (again,), (other,) = (run_job(job).runs for job in (one, one, two))
    assert first == again
    assert 5 < float(first["eval_return"]) < 60
    assert other["eval_return"] != first["eval_return"]
    job = next(job for job in jobs if job.method == "human")
    freeway = job._replace(config=job.config.model_copy(update={"task": "ALE/Freeway-v5"}))
    assert run_job(freeway).runs[0]["eval_return"] == "29.6"
    with pytest.raises(BadConfig, match="No human score is known of 'CartPole-v1'"):
        run_job(job)


def test_returns_are_normalised_by_random_play_and_a_reference():
    returns = {
        "a": {"random": 10, "scratch": 20, "human": 110, "hub-pathway": 30},
        "b": {"random": 0, "scratch": 100, "hub-pathway": 50},
        "c": {"random": 5, "scratch": 5, "hub-pathway": 50},
    }
    table = pd.DataFrame(
        [
            {
                "task": task,
                "hub": "pair" if method == "hub-pathway" else "none",
                "method": method,
                "eval_return": float(value),
            }
            for task, by_method in returns.items()
            for method, value in by_method.items()
        ]
    )
    by_scratch = net_of_random(table, by="scratch").splitlines()
    # On c scratch is no better than random play.
    assert "| pair | hub-pathway | a 2.00, b 0.50 | 1.25 | 1.25 | 1.25 | 1 of 2 |" in by_scratch
    by_human = net_of_random(table, by="human").splitlines()
    assert "| pair | scratch | a 0.10 | 0.10 | 0.10 | 0.10 | 0 of 1 |" in by_human
    assert "| pair | hub-pathway | a 0.20 | 0.20 | 0.20 | 0.20 | 0 of 1 |" in by_human
    assert net_of_random(table[table["method"] != "random"], by="scratch") == ""


def test_first_seeds_come_first_and_targets_share_their_scratch(tmp_path):
    two = {
        "cart": without_oracle()["cart"],
        "again": {**without_oracle()["cart"], "target": "cart"},
    }
    jobs = plan(written(tmp_path, cases=two), tmp_path / "runs")
    assert [job.config.seed for job in jobs] == [1] * 5 + [2] * 5
    assert sum(job.label == "scratch" for job in jobs) == 2
    assert {job.label for job in jobs} == {
        "zero-shot",
        "scratch",
        "residual:one",
        "residual:other",
        "hub-pathway",
    }
    assert len({job.keys[0] for job in jobs}) == len(jobs)


def test_two_cases_of_one_target_must_be_the_same_where_they_share_a_run(tmp_path):
    longer = {**without_oracle()["cart"], "target": "cart", "set": {"steps": 512}}
    with pytest.raises(
        BadConfig,
        match="Case 'longer' has the target 'cart' of another case, but other settings for 'scratch'",
    ):
        plan(
            written(
                tmp_path, cases={**without_oracle(), "longer": {**longer, "methods": ["scratch"]}}
            ),
            tmp_path / "runs",
        )


def test_a_study_of_which_nothing_is_finished_has_no_report(tmp_path):
    with pytest.raises(BadFile, match=r"has no runs\.csv: no run of the study is finished"):
        write_reports(tmp_path)


def test_curves_of_runs_that_are_left_out_are_left_out_too(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "runs"
    case = {"cart": {**without_oracle()["cart"], "methods": ["scratch"]}}
    short = {**TINY["set"], "steps": 128, "eval_every": 64}
    run_study(
        written(tmp_path, seeds=[1], cases=case, set=short), folder=folder, results=results, jobs=1
    )
    old = len(rows(results / "curves.csv"))
    assert old
    other = {"cart": {**case["cart"], "methods": ["scratch", "residual"], "set": {"steps": 192}}}
    path = written(tmp_path, seeds=[1], cases=other, set=short)
    run_study(path, folder=folder, results=results, jobs=1, methods=["residual"])
    assert {row["method"] for row in rows(results / "runs.csv")} == {
        "residual:one",
        "residual:other",
    }
    assert {row["method"] for row in rows(results / "curves.csv")} == {
        "residual:one",
        "residual:other",
    }


def test_only_known_cases_and_methods_can_be_chosen(tmp_path):
    path = written(tmp_path, cases=without_oracle())
    for chosen in ({"cases": ["card"]}, {"methods": ["scrach"]}):
        with pytest.raises(UnknownName, match="Did you mean '(cart|scratch)'"):
            run_study(path, folder=tmp_path / "runs", results=tmp_path / "results", **chosen)
    with pytest.raises(UnknownName, match="Unknown seed '9'.*Known: 1, 2"):
        run_study(path, folder=tmp_path / "runs", results=tmp_path / "results", seeds=[9])


def test_a_failing_run_does_not_end_the_others(tmp_path):
    broken = {
        "broken": {
            "hub": "pair",
            "methods": ["scratch"],
            "set": {"algorithm_kwargs": {"n_steps": -1}},
        }
    }
    problems = []
    failed = run_study(
        written(
            tmp_path,
            seeds=[1],
            cases={**broken, "cart": {**without_oracle()["cart"], "methods": ["zero-shot"]}},
        ),
        folder=tmp_path / "runs",
        results=tmp_path / "results",
        jobs=1,
        on_done=lambda job, problem: problems.append(problem),
    )
    assert [job.task for job in failed] == ["broken"]
    assert problems[0] is not None
    assert problems[1] is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cases": TINY["cases"]}, BadConfig, "case 'cart' has the method 'oracle' without a rule"),
        (
            {"hubs": {"pair": ["one", "another"]}, "cases": without_oracle()},
            UnknownName,
            "Unknown agent of hub 'pair' 'another'",
        ),
        (
            {"cases": {"cart": {"hub": "pairs", "methods": [], "set": {}}}},
            UnknownName,
            "Did you mean 'pair'?",
        ),
        (
            {"cases": {"cart": {"hub": "pair", "methods": ["scrach"], "set": {}}}},
            UnknownName,
            "Did you mean 'scratch'?",
        ),
        (
            {"agents": {**TINY["agents"], "one": {"agent": "random:a"}}, "cases": without_oracle()},
            BadConfig,
            "as in random:1",
        ),
        (
            {"seeds": [], "cases": without_oracle()},
            BadConfig,
            "seeds: Tuple should have at least 1 item",
        ),
        (
            {"colour": 1, "cases": without_oracle()},
            BadConfig,
            "colour: Extra inputs are not permitted",
        ),
        (
            {"cases": without_oracle(), "set": {**TINY["set"], "stepz": 1}},
            BadConfig,
            "case 'cart', method 'zero-shot': Unknown field 'stepz'",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_runs(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        plan(written(tmp_path, **changes), tmp_path / "runs")


def test_the_oracle_lets_the_best_act(tmp_path):
    pytest.importorskip("mujoco")
    cases = {
        "turn": {
            "hub": "pair",
            "methods": ["oracle"],
            "set": {},
            "oracle": {"attribute": "sign", "sources": {1: "one", -1: "other"}},
        }
    }
    robot = {
        **TINY["set"],
        "task": "envs.mujoco:hubrl/HalfCheetahReversing-v5",
        "task_kwargs": {"every": [5, 9]},
    }
    agents = {
        "one": {"agent": "random:1"},
        "other": {"agent": "random:2", "signs": [1, 1, 1, -1, 1, 1]},
    }
    path = written(tmp_path, seeds=[1], cases=cases, set=robot, agents=agents)
    results = tmp_path / "results"
    run_study(path, folder=tmp_path / "runs", results=results, jobs=1)
    assert [row["method"] for row in rows(results / "runs.csv")] == ["oracle"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_can_be_run(path):
    study = read_study(path)
    for name, case in study.cases.items():
        fields = study.fields(name)
        if "mujoco" in fields["task"]:
            pytest.importorskip("mujoco")
        make_env(fields["task"], fields.get("task_kwargs")).close()
        for method in case.methods:
            parse_config({**study.fields(name, method), "hub": "somewhere"}, name)


def test_multipolars_published_lines_stand_beside_each_other_on_every_acrobot():
    study = read_study(next(path for path in STUDIES if path.stem == "acrobot"))
    assert all(
        {"scratch", "multipolar:instance-101", "multipolar"} <= set(case.methods)
        for case in study.cases.values()
    )
    one, four = study.methods["multipolar:instance-101"].set, study.methods["multipolar"].set
    assert one == {**four, "options": {**four["options"], "source": "instance-101"}}
    assert "instance-101" in study.hubs["four"]


def test_interquartile_means_and_intervals_by_hand():
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx(2.0)
    assert estimate([5.0, 5.0, 5.0]) == (5.0, 5.0, 5.0, 3)
    one = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert one.low < one.value == 3.0 < one.high
    assert set(np.unique(resampled([1.0, 3.0]))) == {1.0, 2.0, 3.0}
    gap = difference([10.0, 11.0, 12.0], [1.0, 2.0, 3.0])
    assert gap.value == pytest.approx(9.0)
    assert gap.low > 6
    assert str(estimate([1000.0, 1000.0, 1000.0])) == "1000 (1000, 1000)"
    assert str(estimate([1000.0, 1002.0])) == "1001", "two runs carry no interval"
    assert str(estimate([0.125, 0.125, 0.125])) == "0.125 (0.125, 0.125)", "rates of success"
    assert str(estimate([-0.5, -0.25])) == "-0.375"


def test_means_over_targets_are_stratified(tmp_path):
    runs = pd.DataFrame(
        [
            {"task": task, "hub": "pair", "method": method, "seed": seed, "first_quarter_return": value, "mean_train_return": value, "eval_return": value}
            for task, method, values in (("a", "one", (1.0, 3.0, 5.0)), ("b", "one", (10.0, 10.0, 10.0)), ("a", "other", (0.0, 0.0, 0.0)))
            for seed, value in enumerate(values)
        ]
    )  # fmt: skip
    overall = stratified([[1.0, 3.0, 5.0], [10.0, 10.0, 10.0]])
    assert overall.value == 6.5
    assert 5.5 <= overall.low < 6.5 < overall.high <= 7.5
    table = over_targets(runs)
    assert table.count("| pair | one |") == 1
    assert "| 2 | 6 |" in table
    assert "other" not in table, "a method that was not run on every target is not compared"
    assert "| one | 3 (1, 5) | 10 (10, 10) |" in side_by_side(runs)


def test_results_of_before_a_column_was_added_are_read(tmp_path):
    (tmp_path / "runs.csv").write_text("task,hub,method,seed\ncart,none,scratch,1\n")
    table = read_table(tmp_path / "runs.csv", RUN_COLUMNS)
    assert list(table.columns) == list(RUN_COLUMNS)
    assert table.loc[0, "first_quarter_return"] == ""


def test_how_long_until_where_scratch_ends_by_hand():
    rows = [
        ("cart", "none", "scratch", 1, 1000, 50.0, 10.0),
        ("cart", "pair", "fast", 1, 1000, 60.0, 20.0),
        ("cart", "pair", "fast", 2, 1000, 55.0, 40.0),
        ("cart", "pair", "slow", 1, 1000, 40.0, 20.0),
        ("pole", "pair", "fast", 1, 1000, 40.0, 20.0),
    ]
    table = pd.DataFrame(
        rows, columns=["task", "hub", "method", "seed", "steps", "eval_return", "wall_s"]
    )
    table = table.assign(mean_train_return=0.0, probe_steps=np.nan)
    points = [
        ("fast", 1, 300, 49.0),
        ("fast", 1, 600, 50.0),
        ("fast", 2, 300, 1.0),
        ("slow", 1, 300, 49.0),
    ]
    curves = pd.DataFrame(
        [
            ("cart", "pair", method, seed, "evaluation", step, earned)
            for method, seed, step, earned in points
        ]
        + [("cart", "pair", "fast", 1, "training", 100, 99.0)],
        columns=["task", "hub", "method", "seed", "kind", "step", "return"],
    )
    groups = {key: group for key, group in table.groupby(["task", "method"])}
    assert seconds_to_scratch(groups["cart", "fast"], table, curves) == [12.0, 40.0]
    assert seconds_to_scratch(groups["cart", "slow"], table, curves) == [np.inf]
    assert seconds_to_scratch(groups["pole", "fast"], table, curves) == [], (
        "nobody ran scratch there"
    )
    lines = details(table, curves).splitlines()
    assert "| cart | pair | fast | 58 | 0 |  | 30 | 26 | 2 |" in lines
    assert "| cart | pair | slow | 40 | 0 |  | 20 | never | 1 |" in lines
    assert "| pole | pair | fast | 40 | 0 |  | 20 |  | 1 |" in lines


def test_a_study_that_is_killed_leaves_no_processes(tmp_path):
    path = written(tmp_path, seeds=[1], cases=without_oracle())
    script = f"""
from pathlib import Path
from hubrl.experiments.study import run_study

if __name__ == "__main__":
    run_study(Path({str(path)!r}), folder=Path({str(tmp_path / "runs")!r}), results=Path({str(tmp_path / "results")!r}), jobs=1)
"""
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, tmp_path / "run.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as study:
        children = Path(f"/proc/{study.pid}/task/{study.pid}/children")
        if not children.exists():
            study.kill()
            pytest.skip("the system does not tell who started whom")
        deadline = time.monotonic() + 120
        while not list((tmp_path / "runs").rglob("config.yaml")) and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [int(pid) for pid in children.read_text(encoding="utf-8").split()]
        study.kill()
    assert workers
    while any(runs_still(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(runs_still(pid) for pid in workers)


def runs_still(pid):
    """Whether a process is there and has not ended."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_agent_of_a_study_may_name_its_statistics(tmp_path):
    keys = spaces.Discrete(2)
    untrained(PPO, actions=keys).save(tmp_path / "agent.zip")
    normalised(actions=keys).save(tmp_path / "other.pkl")
    agents = {**TINY["agents"], "one": {"agent": "agent.zip,other.pkl"}}
    planned = plan(written(tmp_path, agents=agents, cases=without_oracle()), tmp_path / "runs")
    hub = Hub.load(next(job.config.hub for job in planned if job.config.hub is not None))
    assert [source.card.normalisation is not None for source in hub] == [True, False]
