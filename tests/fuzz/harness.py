"""Mutated files read in worker processes with limits on time and memory, and an audit hook as canary.

    python tests/fuzz/harness.py --seconds 3600 --seed 1

A worker forks a child that reads files one by one: each is read, its agent acts and is saved, and the child reports what came
of it. A child that dies, takes longer than `SECONDS` over a file, or more memory than `MEMORY` is a finding, and so is any
exception but HubrlError and any audit event of running, writing or connecting. Forking costs as much as reading, so a child
reads up to `FILES_OF_A_CHILD` files; memory counts from its beginning, and a grown one gives way to a new one.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np
import torch
from gymnasium import spaces
from mutate import (
    bend_any,
    bend_bytes,
    bend_nested,
    bend_pickle,
    bend_safetensors,
    bend_torch,
    bend_torch_pickle,
    bend_yaml,
    bend_zip,
)
from seeds import make_seeds

from hubrl import Hub, HubrlError
from hubrl.experiments.config import parse_config, read_config
from hubrl.experiments.finished_run import run_agent
from hubrl.experiments.study_config import read_study
from hubrl.reports.explain import explain
from hubrl.reports.run_log import RunLog

SECONDS = 5
MEMORY = 2**30

FILES_OF_A_CHILD = 64

GROWTH = 2**26
"""Bytes of memory that a child may keep; above it the next file has a new one."""

LOUD = (
    "os.system", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.", "os.mkdir", "os.rename",
    "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.", "urllib.", "pickle.find_class", "marshal.",
)  # fmt: skip
"""Audit events that reading a file never has a reason for."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

FINE = ("read", "refused")
"""Outcomes that are no finding."""


class Kind(NamedTuple):
    """A kind of input: which files are bent, how, and who reads them."""

    folder: str
    """Folder of the seeds."""
    pattern: str
    """Files of which one is bent."""
    bend: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], Any]
    opened: Callable[[Path], Path] = lambda path: path
    """The path that is read, by the file that was bent."""


def _run_of(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "versions.json").exists())


def _zip_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".vecnormalize.pkl") + ".zip")


def read_agents(path: Path) -> None:
    """Read an agent or a hub, let it act, save it and load it again."""
    hub = Hub.load(path) if (path / "hub.yaml").is_file() else Hub.from_agents([path])
    for source in hub:
        act(source)
    with CANARY.paused(), tempfile.TemporaryDirectory() as folder:
        hub.save(Path(folder) / "hub")
        Hub.load(Path(folder) / "hub")


def read_run(folder: Path) -> None:
    """Read a finished run as `hubrl explain` does, its agent and its last checkpoint."""
    log = RunLog(folder)
    explain(log)
    log.shares_acted()
    log.versions, log.command, log.training_curve  # noqa: B018
    act(run_agent(folder))


def read_whole_study(path: Path) -> None:
    """Read a study, and the configs of its cases."""
    study = read_study(path)
    for name, case in study.cases.items():
        for method in case.methods:
            fields = study.fields(name, method)
            parse_config({**fields, "hub": "hub"}, name)


def _weights_of(card: Path) -> Path:
    return next(card.parent.glob(f"{card.stem}.[ps]*t*"))


KINDS: dict[str, Kind] = {
    "zip": Kind("zip", "*.zip", bend_zip, read_agents),
    "hub-trained zip": Kind("trained", "*.zip", bend_zip, read_agents),
    "statistics": Kind("statistics", "*.pkl", bend_bytes, read_agents, _zip_of),
    "statistics' opcodes": Kind("statistics", "*.pkl", bend_pickle, read_agents, _zip_of),
    "saved policy": Kind("policy", "*.pt", bend_bytes, read_agents),
    "torch weights": Kind("bare", "*.p*t*", bend_torch, read_agents),
    "torch weights' opcodes": Kind("bare", "*.p*t*", bend_torch_pickle, read_agents),
    "nested weights": Kind("nested", "*.pt", bend_nested, read_agents),
    "card of weights": Kind("bare", "*.yaml", bend_yaml, read_agents, _weights_of),
    "safetensors": Kind("bare", "*.safetensors", bend_safetensors, read_agents),
    "card of a hub": Kind("hub", "good.yaml", bend_yaml, read_agents),
    "hub": Kind("hub", "hub.yaml", bend_yaml, read_agents, lambda path: path.parent),
    "config": Kind("config", "config.yaml", bend_yaml, read_config),
    "study": Kind("config", "study.yaml", bend_yaml, read_whole_study),
    "run": Kind("run", "**/*.*", bend_any, read_run, _run_of),
}


def _caller() -> str:
    """File and line that caused an audit event, past the machinery of imports."""
    frames = traceback.extract_stack()[:-2]
    last = [frame for frame in frames if "importlib" not in frame.filename][-1]
    return f"{Path(last.filename).name}:{last.lineno}"


class Canary:
    """Audit events of a child while it reads."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        written = event == "open" and (
            (isinstance(args[1], str) and set("wax+") & set(args[1])) or (args[2] or 0) & WRITING
        )
        if written or event.startswith(LOUD):
            self.events.append(f"{_caller()}: {event} {args!r}"[:300])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A part that writes on purpose."""
        self.armed = False
        yield
        self.armed = True


CANARY = Canary()


def read(path: Path, how: Callable[[Path], Any]) -> dict[str, Any]:
    """What reading a path comes to."""
    CANARY.events.clear()
    CANARY.armed = True
    try:
        how(path)
        outcome, message = "read", ""
    except HubrlError as error:
        outcome, message = (
            ("refused", "") if len(str(error)) < 1000 else ("a long sentence", str(error)[:300])
        )
    except BaseException as error:
        outcome, message = "traceback", f"{type(error).__name__}: {error}"[:300]
    CANARY.armed = False
    if CANARY.events:
        outcome, message = "canary", CANARY.events[0]
    return {"outcome": outcome, "message": message}


def act(source: Any) -> None:
    """A source's actions on three observations are finite."""
    if source.actions is None:
        return
    actions, _ = source.predict(draw_observations(source.space), deterministic=True)
    if not np.isfinite(np.asarray(actions, float)).all():
        raise FloatingPointError("actions are not finite")


def draw_observations(space: Any, count: int = 3) -> Any:
    """A batch of observations."""
    if isinstance(space, spaces.Dict):
        return {key: draw_observations(part, count) for key, part in space.spaces.items()}
    space.seed(0)
    if isinstance(space, spaces.Box) and not (
        np.isfinite(space.low).all() and np.isfinite(space.high).all()
    ):
        return np.zeros((count, *space.shape), space.dtype)
    return np.stack([space.sample() for _ in range(count)])


class Reader:
    """Forked children that read paths, each with limits; one after the other."""

    def __init__(self) -> None:
        self.child = self.count = 0

    def read(self, path: Path, kind: str) -> dict[str, Any]:
        """What reading a path of a kind came to."""
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        if not self.child:
            self._fork()
        os.write(self.tasks, json.dumps([str(path), kind, size]).encode() + b"\n")
        told = self.results.readline()
        self.count += 1
        if not told:
            return self._died()
        result: dict[str, Any] = json.loads(told)
        grown = result.pop("grown")
        if self.count == FILES_OF_A_CHILD or grown or result["outcome"] not in FINE:
            self.close()
        return result

    def close(self) -> int:
        """End the child; its status."""
        if not self.child:
            return 0
        os.close(self.tasks)
        self.results.close()
        _, status = os.waitpid(self.child, 0)
        self.child = self.count = 0
        return status

    def _fork(self) -> None:
        tasks, self.tasks = os.pipe()
        source, results = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.tasks)
            os.close(source)
            _serve(tasks, results)
            os._exit(0)
        os.close(tasks)
        os.close(results)
        self.results = os.fdopen(source, "rb")

    def _died(self) -> dict[str, Any]:
        status = self.close()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return {
            "outcome": "hang" if number == signal.SIGALRM else "crash",
            "message": f"signal {number}, status {status}",
        }


def _serve(tasks: int, results: int) -> None:
    """Read the paths that come through a pipe, until it is closed."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, 0)
    begin = _memory()
    with os.fdopen(tasks, "rb") as lines:
        for line in lines:
            path, kind, size = json.loads(line)
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (begin + MEMORY + 4 * size, hard))
            signal.alarm(SECONDS * int(os.environ.get("HUBRL_FUZZ_PATIENCE", "1")))
            result = read(Path(path), KINDS[kind].read)
            signal.alarm(0)
            result["grown"] = _memory() - begin > GROWTH
            os.write(results, json.dumps(result).encode() + b"\n")


def _memory() -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def fuzz(
    reader: Reader, seeds: Path, name: str, seed: int, kept: Path | None = None
) -> dict[str, Any]:
    """Bend one file of a kind, and read it."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as room:
        copy = Path(room) / "input"
        shutil.copytree(seeds / kind.folder, copy)
        draw = random.Random(f"{name}-{seed}")
        path = draw.choice(sorted(copy.glob(kind.pattern)))
        path.write_bytes(kind.bend(draw, path.read_bytes()))
        begin = time.monotonic()
        result = {"kind": name, "seed": seed, **reader.read(kind.opened(path), name)}
        result["seconds"] = time.monotonic() - begin
        if result["outcome"] not in FINE and kept is not None:
            result["file"] = str(path.relative_to(copy))
            shutil.copytree(copy, kept / f"{name.replace(' ', '-')}-{seed}", dirs_exist_ok=True)
    return result


def work(task: tuple[Path, int, int, float, int, Path | None, list[str]]) -> list[dict[str, Any]]:
    """The results of one worker, until its time or its number of files is up."""
    seeds, worker, seed, seconds, files, kept, kinds = task
    torch.set_num_threads(1)
    end, results, reader = time.monotonic() + seconds, [], Reader()
    for index in range(files):
        if time.monotonic() > end:
            break
        number = seed * 10**6 + worker * 10**5 + index
        results.append(fuzz(reader, seeds, kinds[index % len(kinds)], number, kept))
        if (index + 1) % 1000 == 0:
            counts = dict(Counter(result["outcome"] for result in results))
            print(f"worker {worker}: {counts}", file=sys.stderr, flush=True)  # noqa: T201
    reader.close()
    return results


def run(
    seed: int = 0,
    seconds: float = 60,
    files: int = 10**5,
    workers: int = 2,
    kept: Path | None = None,
    kinds: list[str] | None = None,
) -> list[dict[str, Any]]:
    """All results; the seeds of the files follow from `seed`, so that a finding can be made again."""
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        seeds = Path(folder)
        make_seeds(seeds)
        _warm_up(seeds)
        share = files // workers
        chosen = kinds or list(KINDS)
        tasks = [(seeds, worker, seed, seconds, share, kept, chosen) for worker in range(workers)]
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            return [result for results in pool.map(work, tasks) for result in results]


def _warm_up(seeds: Path) -> None:
    """Read good files of every kind: lazy imports are done before the first child is forked."""
    for kind in KINDS.values():
        for path in sorted((seeds / kind.folder).glob(kind.pattern)):
            kind.read(kind.opened(path))
    repr(torch.zeros(1))  # torch imports modules of its own to show a tensor in a message
    gc.collect()
    gc.freeze()


def table(results: list[dict[str, Any]]) -> str:
    """Files, read, refused, findings and the slowest file's seconds by kind, in Markdown."""
    lines = [
        "| kind | files | read | refused | findings | slowest (s) |",
        "|---|---|---|---|---|---|",
    ]
    for kind in [*KINDS, "all"]:
        those = [result for result in results if kind in (result["kind"], "all")]
        counts = Counter(result["outcome"] for result in those)
        findings = len(those) - sum(counts[outcome] for outcome in FINE)
        slowest = max((result["seconds"] for result in those), default=0)
        lines.append(
            f"| {kind} | {len(those)} | {counts['read']} | {counts['refused']} | {findings} "
            f"| {slowest:.1f} |"
        )
    return "\n".join(lines)


def findings_in(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that are neither an agent nor a sentence."""
    return [result for result in results if result["outcome"] not in FINE]


def main() -> int:
    """The command line; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--files", type=int, default=10**5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--keep",
        type=Path,
        default=None,
        help="folder for files that were neither read nor refused",
    )
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), help="bend this kind alone, repeatable"
    )
    given = parser.parse_args()
    begin = time.monotonic()
    results = run(given.seed, given.seconds, given.files, given.workers, given.keep, given.kind)
    print(table(results))  # noqa: T201
    print(f"{time.monotonic() - begin:.0f} seconds")  # noqa: T201
    for finding in findings_in(results):
        print(json.dumps(finding))  # noqa: T201
    return int(bool(findings_in(results)))


if __name__ == "__main__":
    sys.exit(main())
