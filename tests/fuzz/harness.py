"""Mutated files read in worker processes with limits on time and memory, and an audit hook as canary.

    python tests/fuzz/harness.py --seconds 3600 --seed 1

A worker forks one child for every file. The child reads it, lets the agent act and saves it, and reports what came of it; a
child that dies, takes longer than `SECONDS`, or more memory than `MEMORY` is a finding, and so is any exception but HubrlError
and any audit event of running, writing or connecting.
"""

import argparse
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np
import torch
from gymnasium import spaces
from mutate import bend_bytes, bend_safetensors, bend_torch, bend_yaml, bend_zip
from seeds import make_seeds

from hubrl import Hub, HubrlError

SECONDS = 5
MEMORY = 2**30

LOUD = (
    "os.system", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.", "os.mkdir", "os.rename",
    "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.", "urllib.", "pickle.find_class", "marshal.",
)  # fmt: skip
"""Audit events that reading a file never has a reason for."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Change = Callable[[random.Random, Path], Path]
"""Bend one of the files in a copy of a seed's folder; returns the path to be read."""


def bend(
    pattern: str,
    how: Callable[[random.Random, bytes], bytes],
    read: Callable[[Path], Path] = lambda path: path,
) -> Change:
    """The change of one file that fits the pattern, read under the path that `read` gives."""

    def change(draw: random.Random, folder: Path) -> Path:
        path = draw.choice(sorted(folder.glob(pattern)))
        path.write_bytes(how(draw, path.read_bytes()))
        return read(path)

    return change


def _zip_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".vecnormalize.pkl") + ".zip")


KINDS: dict[str, tuple[str, Change]] = {
    "zip": ("zip", bend("*.zip", bend_zip)),
    "hub-trained zip": ("trained", bend("*.zip", bend_zip)),
    "statistics": ("statistics", bend("*.pkl", bend_bytes, _zip_of)),
    "saved policy": ("policy", bend("*.pt", bend_bytes)),
    "torch weights": ("bare", bend("*.p*t*", bend_torch)),
    "card of weights": (
        "bare",
        bend("*.yaml", bend_yaml, lambda path: next(path.parent.glob(f"{path.stem}.[ps]*t*"))),
    ),
    "safetensors": ("bare", bend("*.safetensors", bend_safetensors)),
    "card of a hub": ("hub", bend("good.yaml", bend_yaml)),
    "hub": ("hub", bend("hub.yaml", bend_yaml, lambda path: path.parent)),
}
"""Folder of the seeds and change, by kind of input."""


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
            self.events.append(f"{event} {args!r}"[:200])


CANARY = Canary()


def read(path: Path) -> dict[str, Any]:
    """Read, act, save and load again; what came of it."""
    CANARY.events.clear()
    CANARY.armed = True
    try:
        hub = Hub.load(path) if (path / "hub.yaml").is_file() else Hub.from_agents([path])
        for source in hub:
            act(source)
        CANARY.armed = False
        with tempfile.TemporaryDirectory() as folder:
            hub.save(Path(folder) / "hub")
            Hub.load(Path(folder) / "hub")
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


def in_child(path: Path) -> dict[str, Any]:
    """What reading a path came to, in a forked child with limits."""
    size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _limit(MEMORY + 4 * size)
        os.write(sink, json.dumps(read(path)).encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        result: dict[str, Any] = json.loads(told)
        return result
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {
        "outcome": "hang" if number == signal.SIGALRM else "crash",
        "message": f"signal {number}, status {status}",
    }


def _limit(memory: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(SECONDS * int(os.environ.get("HUBRL_FUZZ_PATIENCE", "1")))


def fuzz(seeds: Path, kind: str, seed: int, kept: Path | None = None) -> dict[str, Any]:
    """Bend one file of a kind, and read it."""
    folder, change = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as room:
        shutil.copytree(seeds / folder, Path(room) / "input")
        path = change(random.Random(f"{kind}-{seed}"), Path(room) / "input")
        result = {"kind": kind, "seed": seed, **in_child(path)}
        if result["outcome"] not in ("read", "refused") and kept is not None:
            shutil.copytree(
                Path(room) / "input", kept / f"{kind.replace(' ', '-')}-{seed}", dirs_exist_ok=True
            )
    return result


def work(task: tuple[Path, int, int, float, int, Path | None, list[str]]) -> list[dict[str, Any]]:
    """The results of one worker, until its time or its number of files is up."""
    seeds, worker, seed, seconds, files, kept, kinds = task
    torch.set_num_threads(1)
    end, results = time.monotonic() + seconds, []
    for index in range(files):
        if time.monotonic() > end:
            break
        number = seed * 10**6 + worker * 10**5 + index
        results.append(fuzz(seeds, kinds[index % len(kinds)], number, kept))
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
        for path in seeds.rglob("*.zip"):  # Lazy imports are done before the first child is forked.
            read(path)
        share = files // workers
        chosen = kinds or list(KINDS)
        tasks = [(seeds, worker, seed, seconds, share, kept, chosen) for worker in range(workers)]
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            return [result for results in pool.map(work, tasks) for result in results]


def table(results: list[dict[str, Any]]) -> str:
    """Files, read, refused and findings by kind, as a table of Markdown."""
    lines = ["| kind | files | read | refused | findings |", "|---|---|---|---|---|"]
    for kind in KINDS:
        counts = Counter(result["outcome"] for result in results if result["kind"] == kind)
        findings = sum(counts.values()) - counts["read"] - counts["refused"]
        lines.append(
            f"| {kind} | {sum(counts.values())} | {counts['read']} | {counts['refused']} | {findings} |"
        )
    return "\n".join(lines)


def findings_in(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that are neither an agent nor a sentence."""
    return [result for result in results if result["outcome"] not in ("read", "refused")]


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
    results = run(given.seed, given.seconds, given.files, given.workers, given.keep, given.kind)
    print(table(results))  # noqa: T201
    for finding in findings_in(results):
        print(json.dumps(finding))  # noqa: T201
    return int(bool(findings_in(results)))


if __name__ == "__main__":
    sys.exit(main())
