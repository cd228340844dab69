"""Studies on a Ray cluster of three nodes: the rows of one process, whatever dies on the way."""

import csv
import importlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest
import yaml
from typer.testing import CliRunner

from hubrl import BadConfig
from hubrl.cli.app import app
from hubrl.experiments import cluster
from hubrl.experiments import task_modules as task_module
from hubrl.experiments.checkpoints import checkpoints_in
from hubrl.experiments.cluster import (
    NodeDiffers,
    Parcel,
    apply_changes,
    changes_since,
    connected,
    run_files,
    stated_resources,
    work,
)
from hubrl.experiments.run import train_legs
from hubrl.experiments.run_record import compared_versions
from hubrl.experiments.study import run_job, run_study
from hubrl.experiments.study_plan import plan
from hubrl.experiments.study_tables import RunRows, append_results
from hubrl.experiments.task_modules import task_modules
from hubrl.formats.files import write_folder

MORTAL = '''
"""CartPole whose process is killed after some of its steps, and later the node of its process."""

import os
import signal
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Mortal(CartPoleEnv):
    taken = 0

    def __init__(self, marks, render_mode=None):
        super().__init__()
        self.marks = Path(marks)

    def step(self, action):
        Mortal.taken += 1
        if Mortal.taken == 400:
            self.kill("process", os.getpid())
            self.kill("node", os.getppid())
        return super().step(action)

    def kill(self, name, number):
        if not (self.marks / name).exists():
            (self.marks / name).touch()
            os.kill(number, signal.SIGKILL)
            signal.pause()


gym.register("mortal/Cart-v0", "mortal_cart:Mortal", max_episode_steps=50)
'''


def written(folder, **fields):
    """A study of a mortal task, whose module lies beside it."""
    (folder / "mortal_cart.py").write_text(MORTAL)
    study = {
        "seeds": [1],
        "set": {
            "task": "mortal_cart:mortal/Cart-v0",
            "task_kwargs": {"marks": str(folder / "killed")},
            "n_envs": 2,
            "steps": 1024,
            "algorithm_kwargs": {"n_steps": 32, "policy_kwargs": {"net_arch": [8]}},
            "eval_episodes": 2,
            "eval_every": 512,
            "checkpoint_every": 256,
            **fields,
        },
        "agents": {"one": {"agent": "random:1"}, "other": {"agent": "random:2", "order": [1, 0]}},
        "hubs": {"pair": ["one", "other"]},
        "methods": {"scratch": {"set": {"method": "scratch"}}, "hub-pathway": {"set": {}}},
        "cases": {
            "cart": {
                "hub": "pair",
                "controls": True,
                "methods": ["zero-shot", "scratch", "hub-pathway"],
                "set": {},
            }
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def tables(results):
    """All rows of a study but the seconds they took."""
    found = {}
    for name in ("runs", "curves", "pathways"):
        with (results / f"{name}.csv").open() as file:
            found[name] = [{**row, "wall_s": ""} for row in csv.DictReader(file)]
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder whose modules can be imported, here and in processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mortal_cart", None)
    gym.registry.pop("mortal/Cart-v0", None)


@pytest.fixture(scope="module")
def nodes():
    """A Ray cluster on this machine: a head without processors, and two nodes of one each."""
    pytest.importorskip("ray")
    utils = importlib.import_module("ray.cluster_utils")
    small = {"object_store_memory": 100 * 2**20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = utils.Cluster()
        try:
            for given in (
                {"num_cpus": 0, "include_dashboard": False},
                {"num_cpus": 1},
                {"num_cpus": 1},
            ):
                for tries_left in (2, 1, 0):  # on a busy machine Ray's 30 seconds may pass
                    try:
                        made.add_node(**given, **small)
                        break
                    except Exception as error:
                        if not tries_left:
                            pytest.skip(f"Ray did not start: {error}")
            yield made
        finally:
            made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_rows_are_those_of_one_process_though_a_task_its_node_and_the_driver_are_killed(
    here, nodes
):
    path, marks = written(here), here / "killed"
    for name in ("process", "node"):
        (marks / name).mkdir(parents=True)
    jobs = plan(path, here / "alone")
    for job in jobs:
        append_results(run_job(job), here / "expected", jobs)
    expected = tables(here / "expected")
    assert len(expected["runs"]) == 7
    for name in ("process", "node"):
        (marks / name).rmdir()

    folder, results = here / "runs" / "tiny", here / "results" / "tiny"
    command = [sys.executable, "-m", "hubrl", "study", str(path), "--ray", nodes.address]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (marks / "node").exists() or not list(folder.rglob("checkpoints/768")):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert (marks / "process").exists()
    assert not (results / "runs.csv").exists() or len(tables(results)["runs"]) < 7

    assert run_study(path, folder=folder, results=results, ray=nodes.address) == []
    assert tables(results) == expected
    assert not list(folder.rglob(".*")), "nothing is left half written"


class Died(Exception):
    """An error of Ray."""


class RunFailed(Died):
    """An error in a task, as Ray hands it on."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class RayHere:
    """Ray, as far as the driver uses it, with tasks in this process, of which some die.

    Args:
        deaths: Number of the object, over all tasks, in whose place a task dies.
    """

    exceptions = SimpleNamespace(RayError=Died, RayTaskError=RunFailed)

    def __init__(self, *deaths):
        self.deaths, self.sent, self.tasks, self.resources = deaths, 0, 0, []

    def remote(self, **options):
        return lambda function: SimpleNamespace(options=partial(self._options, function))

    def _options(self, function, **resources):
        self.resources.append(resources)
        return SimpleNamespace(remote=partial(self._begin, function))

    def _begin(self, function, *given):
        self.tasks += 1
        run = function(*given)
        while True:
            try:
                item = next(run)
            except StopIteration:
                return
            except Exception as error:
                yield partial(throw, RunFailed(error))
                return
            self.sent += 1
            if self.sent in self.deaths:
                run.close()
                yield partial(throw, Died("gone"))
                return
            yield partial(lambda each: each, item)

    def put(self, value):
        return value

    def get(self, reference):
        return reference()

    def wait(self, tasks, timeout, fetch_local):
        return tasks[:1], tasks[1:]

    def cancel(self, task, force):
        task.close()

    def cluster_resources(self):
        return {"CPU": 1.0}


def throw(error):
    raise error


@pytest.mark.slow
def test_a_run_whose_task_dies_goes_on_from_what_the_driver_has(here, monkeypatch):
    marks = here / "killed"
    for name in ("process", "node"):
        (marks / name).mkdir(parents=True)
    path = written(here)
    jobs = [job for job in plan(path, here / "alone") if job.method != "hub-pathway"]
    expected = {job.label: run_job(job) for job in jobs}
    ray = RayHere(2, 4, 5)
    begun = []
    monkeypatch.setattr(
        cluster, "train_legs", lambda folder: begun.append(steps(folder)) or train_legs(folder)
    )
    moved = [job._replace(root=here / "driver") for job in jobs]
    shutil.copytree(here / "alone" / "hubs", here / "driver" / "hubs")
    found = {job.label: rows for job, rows in cluster.Cluster(ray).run(run_job, moved)}
    assert {label: timeless(rows) for label, rows in found.items()} == {
        label: timeless(rows) for label, rows in expected.items()
    }
    assert ray.tasks == len(jobs) + 3
    assert begun == [[], [], [256], [256]]
    assert ray.resources[0] == {"num_cpus": 1, "num_gpus": 0}


def steps(folder):
    return [int(each.name) for each in checkpoints_in(folder / "checkpoints")]


def timeless(rows):
    return [[{**row, "wall_s": ""} for row in table] for table in rows]


@pytest.mark.slow
def test_a_run_that_fails_and_one_that_always_dies_are_told_apart(here):
    path = written(here, algorithm_kwargs={"n_steps": -1})
    jobs = [job for job in plan(path, here / "runs") if job.method == "scratch"]
    ((_, error),) = cluster.Cluster(RayHere()).run(run_job, jobs)
    assert isinstance(error, BadConfig)
    ((_, error),) = cluster.Cluster(RayHere(1, 2, 3)).run(zero_rows, untrained(here))
    assert str(error) == "its task died 3 times without a new checkpoint, the last time by Died"


def untrained(here):
    return [job for job in plan(written(here), here / "runs") if job.method == "zero-shot"]


def zero_rows(job):
    return RunRows([])


def test_a_cluster_that_cannot_be_used_is_a_sentence_before_anything_is_written(here, monkeypatch):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for address, message in (
        (
            f"127.0.0.1:{closed}",
            r"No Ray cluster answers at --ray 127.0.0.1:\d+ \(.*refused\); start",
        ),
        (
            "ray://127.0.0.1:10001",
            "--ray ray://127.0.0.1:10001 was given; expected auto, or host:port",
        ),
        ("head", "--ray head was given; expected auto, or host:port of the cluster's head"),
        ("head:99999", "No Ray cluster answers at --ray head:99999"),
    ):
        with pytest.raises(BadConfig, match=message):
            run_study(written(here), folder=here / "runs", results=here / "results", ray=address)
    assert not list((here / "runs").iterdir())


def test_ray_that_is_not_installed_is_a_sentence(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["study", str(written(here)), "--ray", "auto"])
    assert isinstance(done.exception, BadConfig)
    assert str(done.exception) == "--ray needs Ray, which is not installed; install hubrl[ray]."


class OtherVersion:
    """Ray, as far as it is used, of a cluster with another version."""

    @staticmethod
    def init(**given):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n")


def test_another_version_of_ray_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", OtherVersion)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(
                BadConfig, match="was started with: Ray: 2.50.0 Install the same versions"
            ),
            connected(address),
        ):
            pass


def test_another_version_on_a_node_is_a_sentence(here):
    versions = {**compared_versions(), "torch": "1.0"}
    (job,) = plan(written(here), here / "runs")[:1]
    (sent,) = work(run_job, Parcel(job, {}, versions), {})
    assert isinstance(sent, NodeDiffers)
    assert re.fullmatch(
        r"Node .* has torch \S+, the driver 1.0; install the same versions on every node.",
        sent.sentence,
    )


def test_a_run_has_the_processors_of_its_threads_and_a_gpu_where_it_names_one(here):
    def stated(**fields):
        return stated_resources(plan(written(here, **fields), here / "runs")[0])

    assert stated(threads=3) == {"num_cpus": 3, "num_gpus": 0}
    assert stated(device="cuda") == {"num_cpus": 1, "num_gpus": 1}
    with pytest.raises(BadConfig, match="device: cuda:1 was given, and under --ray a run sees one"):
        stated(device="cuda:1")


def test_a_driver_that_is_killed_while_it_writes_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    task, driver = tmp_path / "task", tmp_path / "driver"
    first = {"config.yaml": b"a", "hub/hub.yaml": b"h", "monitor/0.csv": b"1", "checkpoints/64/model.zip": b"64", "checkpoints/64/run.json": b"{}"}  # fmt: skip
    for folder in (task, driver):
        write_folder(folder, first)
    sent = run_files(task)
    write_folder(task, {"monitor/0.csv": b"12", "checkpoints/128/model.zip": b"128", "checkpoints/128/run.json": b"{}", "result.json": b"{}"})  # fmt: skip
    shutil.rmtree(task / "checkpoints" / "64")
    changes = changes_since(sent, task)
    assert "hub/hub.yaml" not in changes.present
    assert changes_since(sent, task).files == {}

    moments, replace = [0], Path.replace

    def stop(*args):
        if not moments[0]:
            raise KeyboardInterrupt
        moments[0] -= 1
        return replace(*args)

    for survived in range(2):
        moments[0] = survived
        monkeypatch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            apply_changes(driver, changes)
        monkeypatch.undo()
        assert not (driver / "result.json").exists()
        whole = [len(list(one.iterdir())) for one in checkpoints_in(driver / "checkpoints")]
        assert whole
        assert set(whole) == {2}
    apply_changes(driver, changes)
    found = {path.relative_to(driver).as_posix() for path in driver.rglob("*") if path.is_file()}
    assert found == {"hub/hub.yaml", *changes.present}
    assert (driver / "monitor" / "0.csv").read_bytes() == b"12"


def test_modules_of_tasks_travel_and_installed_ones_do_not(here, monkeypatch):
    written(here)
    package = {"games/__init__.py": b"", "games/tag.py": b"x = 1", "games/.git/x": b"x"}
    write_folder(here, package)
    found = task_modules(
        ["mortal_cart:mortal/Cart-v0", "games.tag:Tag-v0", "CartPole-v1", "torch:x"]
    )
    assert {*found} == {"mortal_cart.py", "games/__init__.py", "games/tag.py"}
    monkeypatch.setattr(task_module, "MODULE_BYTES", 10)
    with pytest.raises(
        BadConfig, match="modules of the tasks .* travel to the nodes at most; install"
    ):
        task_modules(["mortal_cart:mortal/Cart-v0"])
