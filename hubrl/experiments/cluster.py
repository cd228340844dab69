"""The runs of a study on a Ray cluster: one task a run, of which any may die by itself.

The run's folder on the driver is the record. A task begins with a copy of it, sends the files that
changed at every checkpoint, and its rows at the end. So no file system is shared, a run whose task
died goes on from its last checkpoint on any node, and so does a study whose driver died, on the
cluster or in local processes. Ray ends the tasks of a driver that died.
"""

import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hubrl.errors import BadConfig, FolderInUse, HubrlError
from hubrl.experiments.checkpoints import PROGRESS, checkpoints_in, keep_latest
from hubrl.experiments.run import start_run_from, train_legs
from hubrl.experiments.run_folder import locked_run, remove_leftovers
from hubrl.experiments.run_record import compared_versions, version_difference
from hubrl.experiments.study_config import ORACLE, ZERO_SHOT
from hubrl.experiments.study_plan import Job, hub_folder
from hubrl.experiments.study_tables import RunRows
from hubrl.experiments.task_modules import import_from, task_modules
from hubrl.formats.files import (
    Files,
    lock_folder,
    new_folder,
    read_folder,
    visible_files,
    write_atomically,
    write_folder,
)

DEATHS = 3
"""Times that the task of a run may die without a new checkpoint before the run counts as failed."""

DIED = "its task died {} times without a new checkpoint, the last time by {}"

ANSWER_S = 5.0
"""Seconds that a cluster has to answer."""

NEW_NODES_S = 10.0
"""Seconds after which the cluster's size is read again, as nodes may join."""

SCRATCH = "hubrl-cluster-"
"""Begin of the names of the tasks' folders on the nodes."""

ABANDONED_S = 60.0
"""Least age in seconds of a scratch folder that is removed where no process holds it."""

_held = ExitStack()
"""The lock of this process's scratch folder."""

RunJob = Callable[[Job], RunRows]


class Changes(NamedTuple):
    """The files of a run that changed since those before."""

    files: Files
    present: frozenset[str]
    """All files of the run but its hub; others are gone."""


class NodeDiffers(NamedTuple):
    """The answer of a node on which results would not be those of the driver."""

    sentence: str


class Parcel(NamedTuple):
    """What travels to a node with a job."""

    job: Job
    files: Files
    """Of the run's folder, or of the hub that plays untouched; paths begin at the job's root."""
    versions: dict[str, str]


@contextmanager
def connected(address: str) -> Iterator["Cluster"]:
    """A running Ray cluster.

    Args:
        address: `host:port` of its head, or `auto` for the cluster that this machine belongs to.

    Raises:
        BadConfig: If Ray is not installed, no cluster answers, or its versions are others.
    """
    try:
        import ray
    except ImportError as error:
        raise BadConfig("--ray needs Ray, which is not installed; install hubrl[ray].") from error
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise BadConfig(_no_cluster(address, error)) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise BadConfig(_no_cluster(address, error)) from error
        found = " ".join(str(error).split())
        raise BadConfig(
            f"--ray {address}: {found} Install the same versions of Python and Ray on every node."
        ) from error
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would wait for minutes.

    Raises:
        BadConfig: If the address has another form, or nothing listens there.
    """
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in address:
        raise BadConfig(
            f"--ray {address} was given; expected auto, or host:port of the cluster's head, on a "
            "machine that belongs to the cluster."
        )
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise BadConfig(_no_cluster(address, error)) from error


def _no_cluster(address: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"No Ray cluster answers at --ray {address} ({reason}); start one with `ray start --head`, "
        "or leave out --ray for processes of this machine."
    )


class Attempt:
    """A run that waits for a task, or is in one.

    Args:
        job: The run.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.deaths, self.lock = job, 0, ExitStack()

    def begin(self) -> Files:
        """Lock the run's folder, which is made if it is missing; the files that its task needs.

        Raises:
            FolderInUse: If another process trains the run.
        """
        job = self.job
        if not is_trained(job):
            return read_folder(hub_folder(job.root, job.hub), job.root)
        if not (job.folder / "config.yaml").exists():
            start_run_from(job.config, job.folder)
        self.lock.enter_context(locked_run(job.folder))
        if not (job.folder / "result.json").exists():  # of a driver that was killed
            saved = keep_latest(job.folder / "checkpoints")
            remove_leftovers(job.folder, int(saved[-1].name) if saved else 0)
        return read_folder(job.folder, job.root)

    def receive(self, changes: Changes) -> None:
        """Keep what a task sent."""
        apply_changes(self.job.folder, changes)
        self.deaths = 0


class TaskDied(ChildProcessError):
    """A task whose process or node died."""


class Cluster:
    """A Ray cluster that this process is connected to.

    Args:
        ray: The package.
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        # Retries are the driver's, which knows the checkpoints. A task that yields faster than the
        # driver writes waits, so that files do not fill the memory.
        self.task = ray.remote(
            num_returns="streaming", max_retries=0, _generator_backpressure_num_objects=2
        )(work)

    def run(
        self, run: RunJob, jobs: Sequence[Job], at_once: int | None = None
    ) -> Generator[tuple[Job, RunRows | Exception], None, None]:
        """Every job with its rows or its error, as they end; closing it cancels the rest.

        Args:
            run: What is done with each job; a module's function.
            jobs: The jobs, in the order in which they begin.
            at_once: Greatest number of jobs at a time; by default as many as there is room for.

        Raises:
            BadConfig: If a node has other versions than the driver, or a task's module is too
                large.
        """
        waiting, running = deque(map(Attempt, jobs)), dict[Any, Attempt]()
        same = self.ray.put(task_modules(job.config.task for job in jobs)), compared_versions()
        try:
            while waiting or running:
                while waiting and len(running) < (at_once or self._room(jobs)):
                    attempt = waiting.popleft()
                    try:
                        running[self._submit(run, attempt, *same)] = attempt
                    except HubrlError as error:
                        yield attempt.job, error
                for task in self._ready(running):
                    outcome = self._next(task)
                    if isinstance(outcome, Changes):
                        running[task].receive(outcome)
                        continue
                    attempt = running.pop(task)
                    attempt.lock.close()
                    attempt.deaths += isinstance(outcome, TaskDied)
                    if isinstance(outcome, TaskDied) and attempt.deaths < DEATHS:
                        waiting.appendleft(attempt)
                    else:
                        yield attempt.job, outcome
        finally:
            for task, attempt in running.items():
                self._cancel(task)
                attempt.lock.close()

    def _room(self, jobs: Sequence[Job]) -> int:
        """Runs that fit on the cluster at a time, if all are like the largest; at least one.

        A run that no node has room for waits until one joins.
        """
        cpus = self.ray.cluster_resources().get("CPU", 0)
        return max(int(cpus) // max(job.config.threads for job in jobs), 1)

    def _submit(self, run: RunJob, attempt: Attempt, modules: Any, versions: dict[str, str]) -> Any:
        parcel = Parcel(attempt.job, attempt.begin(), versions)
        task = self.task.options(**stated_resources(attempt.job))
        return task.remote(run, parcel, modules)

    def _ready(self, running: Collection[Any]) -> list[Any]:
        if not running:
            return []
        ready: list[Any] = self.ray.wait([*running], timeout=NEW_NODES_S, fetch_local=False)[0]
        return ready

    def _next(self, task: Any) -> Any:
        """What a task sends next: changes, rows, or the error of its run or of itself.

        Raises:
            BadConfig: If the task's node has other versions.
        """
        try:
            sent = self.ray.get(next(task))
        except self.ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error))
        except (self.ray.exceptions.RayError, StopIteration) as error:
            self._cancel(task)  # where its node lives on
            return TaskDied(DIED.format(DEATHS, type(error).__name__))
        if isinstance(sent, NodeDiffers):
            raise BadConfig(sent.sentence)
        return sent

    def _cancel(self, task: Any) -> None:
        with suppress(Exception):  # of a task or a cluster that is gone
            self.ray.cancel(task, force=True)


def stated_resources(job: Job) -> dict[str, float]:
    """What Ray keeps free for a run: a CPU for each thread of torch, and a GPU if it names one.

    Raises:
        BadConfig: If the run names one of several GPUs.
    """
    device = job.config.device
    if device.startswith("cuda:") and device != "cuda:0":
        raise BadConfig(
            f"device: {device} was given, and under --ray a run sees one GPU alone; use cuda."
        )
    return {"num_cpus": job.config.threads, "num_gpus": int(device.startswith("cuda"))}


def is_trained(job: Job) -> bool:
    """Whether a job is a training, which has a folder and checkpoints."""
    return job.method not in (ZERO_SHOT, ORACLE)


def apply_changes(folder: Path, changes: Changes) -> None:
    """Bring a run's folder to the state of its task.

    A driver that is killed on the way leaves a run that goes on from the checkpoint before: other
    files come first, the checkpoint takes its place as a whole, the result is last.

    Raises:
        NotWritten: If the system refuses.
    """
    checkpoints: dict[PurePosixPath, Files] = {}
    for name, content in changes.files.items():
        path = PurePosixPath(name)
        if path.parts[0] == "checkpoints":
            checkpoints.setdefault(path.parent, {})[path.name] = content
        elif name != "result.json":
            write_atomically(folder / name, content)
    for made, files in checkpoints.items():
        with new_folder(folder / made, overwrite=True, what="A checkpoint") as unfinished:
            write_folder(unfinished, files)
    _remove_others(folder, changes.present)
    if "result.json" in changes.files:
        write_atomically(folder / "result.json", changes.files["result.json"], "The result")


def _remove_others(folder: Path, present: frozenset[str]) -> None:
    for old in checkpoints_in(folder / "checkpoints"):
        if f"checkpoints/{old.name}/{PROGRESS}" not in present:
            shutil.rmtree(old)
    for name in run_files(folder).keys() - present:
        (folder / name).unlink()


def work(
    run: RunJob, parcel: Parcel, modules: Files
) -> Generator[Changes | RunRows | NodeDiffers, None, None]:
    """The task of a run: the run's files at every checkpoint, then its rows."""
    differs = version_difference(parcel.versions)
    if differs is not None:
        yield NodeDiffers(differs)
        return
    import_from(scratch() / "modules", modules)
    root = scratch() / "study"
    shutil.rmtree(root, ignore_errors=True)
    try:
        write_folder(root, parcel.files)
        job = parcel.job._replace(root=root)
        if not is_trained(job):
            yield run(job)
            return
        sent = run_files(job.folder)
        if not (job.folder / "result.json").exists():
            with closing(train_legs(job.folder)) as legs:
                for _ in legs:
                    yield changes_since(sent, job.folder)
        rows = run(job)
        yield changes_since(sent, job.folder)
        yield rows
    finally:
        shutil.rmtree(root, ignore_errors=True)


def changes_since(sent: dict[str, tuple[int, int]], folder: Path) -> Changes:
    """The files of a run that are not as they were sent, which counts them as sent."""
    now = run_files(folder)
    files = {name: (folder / name).read_bytes() for name in now if now[name] != sent.get(name)}
    sent.clear()
    sent.update(now)
    return Changes(files, frozenset(now))


@lru_cache
def scratch() -> Path:
    """This process's own folder on its node; those of processes that died are removed."""
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{SCRATCH}*"):
        with suppress(FolderInUse, OSError):
            if old.stat().st_mtime < time.time() - ABANDONED_S:
                with lock_folder(old, "in use"):
                    shutil.rmtree(old)
    made = Path(tempfile.mkdtemp(prefix=SCRATCH))
    _held.enter_context(lock_folder(made, "in use"))
    return made


def run_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time (ns) of each file of a run but its hub, which stays as it is."""
    found = {}
    for path in visible_files(folder):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("hub/"):
            found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found
