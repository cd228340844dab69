"""Studies that are killed, in part or as a whole, and studies run twice at once: no row lost, none doubled."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hubrl import FolderInUse, NotWritten
from hubrl.experiments import study, study_tables
from hubrl.experiments.study import run_study
from hubrl.experiments.study_tables import (
    CURVE_COLUMNS,
    RUN_COLUMNS,
    RunRows,
    append_results,
    completed_keys,
)
from hubrl.experiments.worker_processes import run_in_processes
from hubrl.formats.files import lock_folder

TINY = {
    "seeds": [1, 2],
    "set": {
        "task": "CartPole-v1",
        "steps": 256,
        "algorithm_kwargs": {"n_steps": 32, "policy_kwargs": {"net_arch": [8]}},
        "eval_episodes": 1,
        "eval_every": 128,
        "checkpoint_every": 64,
    },
    "agents": {"one": {"agent": "random:1"}},
    "hubs": {"alone": ["one"]},
    "methods": {"scratch": {"set": {"method": "scratch"}}},
    "cases": {"cart": {"hub": "alone", "methods": ["scratch"], "set": {}}},
}


def written(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def job(seed):
    return SimpleNamespace(keys=[("cart", "none", "scratch", str(seed), "digest")])


def run_rows(seed):
    key = {"task": "cart", "hub": "none", "method": "scratch", "seed": str(seed)}
    run = {**dict.fromkeys(RUN_COLUMNS, ""), **key, "config": "digest"}
    curve = [
        dict(zip(CURVE_COLUMNS, (*key.values(), "training", str(step), "1.0"), strict=True))
        for step in (64, 128)
    ]
    return RunRows([run], curve)


@pytest.mark.parametrize("at", range(4))
def test_a_kill_between_the_tables_loses_and_doubles_nothing(tmp_path, monkeypatch, at):
    planned = [job(1), job(2)]
    append_results(run_rows(1), tmp_path, planned)
    write, calls = study_tables.write_atomically, []

    def stop(*args):
        calls.append(args)
        if len(calls) > at:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(study_tables, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        append_results(run_rows(2), tmp_path, planned)
    monkeypatch.undo()
    if not completed_keys(tmp_path).issuperset(planned[1].keys):
        append_results(run_rows(2), tmp_path, planned)
    assert [row["seed"] for row in rows(tmp_path / "runs.csv")] == ["1", "2"]
    curves = [(row["seed"], row["step"]) for row in rows(tmp_path / "curves.csv")]
    assert curves == [("1", "64"), ("1", "128"), ("2", "64"), ("2", "128")]


@pytest.mark.parametrize("which", ["runs", "results"])
def test_two_at_once_are_one_and_a_sentence(tmp_path, monkeypatch, which):
    monkeypatch.setattr(study, "PATIENCE_S", 0.0)
    (tmp_path / which).mkdir()
    with (
        lock_folder(tmp_path / which, "busy"),
        pytest.raises(FolderInUse, match=rf"Another process runs a study in .*{which}; wait for"),
    ):
        run_study(written(tmp_path), folder=tmp_path / "runs", results=tmp_path / "results")
    assert not list((tmp_path / "runs").glob("*/*"))


def test_results_that_cannot_be_written_are_a_sentence(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(NotWritten, match=r"The study could not be written to .*results"):
        run_study(written(tmp_path), folder=tmp_path / "runs", results=tmp_path / "results")
    assert (tmp_path / "results").read_text() == "a file"


def twice(job):
    """Twice the number; the process of an odd one dies, of one the first time, of three every time."""
    number, marker = job
    if number % 2 and (number == 3 or not Path(marker).exists()):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.slow
def test_a_killed_worker_concerns_its_own_job_alone(tmp_path):
    jobs = [(number, str(tmp_path / str(number))) for number in range(4)]
    with closing(run_in_processes(twice, jobs, 2)) as outcomes:
        found = {job[0]: outcome for job, outcome in outcomes}
    assert {number: found[number] for number in (0, 1, 2)} == {0: 0, 1: 2, 2: 4}
    assert "was killed 2 times" in str(found[3])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_a_killed_driver_takes_its_workers_along_and_its_study_goes_on(tmp_path):
    path, folder, results = written(tmp_path), tmp_path / "runs", tmp_path / "results"
    command = [
        sys.executable, "-m", "hubrl", "study", str(path), "--runs", str(folder), "--results", str(results), "--jobs", "1",
    ]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.rglob("checkpoints/64")) and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    (run,) = folder.glob("tiny/cart/none/scratch/1-*")
    with lock_folder(run, "a worker is left", patience_s=30.0):
        pass
    failed = run_study(path, folder=folder / "tiny", results=results / "tiny", jobs=1)
    assert failed == []
    assert [row["seed"] for row in rows(results / "tiny" / "runs.csv")] == ["1", "2"]
    curves = [
        (row["seed"], row["kind"], row["step"]) for row in rows(results / "tiny" / "curves.csv")
    ]
    assert len(curves) == len(set(curves)) > 4
