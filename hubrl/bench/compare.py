"""Benchmarks of hubrl in ratios to plain SB3, each measured in turn with it: `hubrl bench`."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch

from hubrl.bench.profiler import profile
from hubrl.bench.workloads import Learning, Running
from hubrl.experiments.run_record import collect_versions
from hubrl.formats.files import write_atomically

HUBRL, SB3 = "hubrl", "sb3"

MATRIX_UNITS = {
    "amx_bf16": "AMX-BF16",
    "avx512_bf16": "AVX512-BF16",
    "avx512f": "AVX512",
    "avx2": "AVX2",
}
"""Names of a processor's matrix and vector units by their flags in Linux."""

Speeds = Mapping[str, float]
"""The measurements of a benchmark's workloads in one repetition."""


def over_sb3(speeds: Speeds) -> float:
    """Speed as a multiple of plain SB3's, the fastest where there are several."""
    return speeds[HUBRL] / max(speed for name, speed in speeds.items() if name.startswith(SB3))


def over(other: str) -> Callable[[Speeds], float]:
    """Speed as a multiple of that of another workload, by its name."""
    return lambda speeds: speeds[HUBRL] / speeds[other]


def of_sb3_default(speeds: Speeds) -> float:
    """Memory as a share of SB3's default."""
    return speeds[HUBRL] / speeds[SB3]


def of_copies(speeds: Speeds) -> float:
    """Memory as a share of that with copied sources."""
    return speeds[HUBRL] / speeds["copied"]


def cost_over(fewer: str) -> Callable[[Speeds], float]:
    """Time as a multiple of that of the workload with fewer sources, by its name."""
    return lambda speeds: speeds[fewer] / speeds[HUBRL]


def over_weights(speeds: Speeds) -> float:
    """Memory of a source as a multiple of that of its weights."""
    return speeds[HUBRL] / speeds["weights"]


def outside(speeds: Speeds) -> float:
    """Share of the time outside emulator and networks, if these take as long as they do alone."""
    return 1 - speeds[HUBRL] / speeds["emulator"] - speeds[HUBRL] / speeds["kernels"]


class Comparable(Protocol):
    """A workload as a benchmark declares it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Fields of a run's config, the task among them."""

    @property
    def n_envs(self) -> int:
        """Parallel environments."""

    def start(self) -> Running:
        """Set it up, untimed."""


class Benchmark(NamedTuple):
    """Workloads that are compared, and the bar for their ratio."""

    name: str
    what: str
    """Description."""
    works: Mapping[str, Comparable]
    """Workloads by name: `hubrl`, and plain SB3 under names that begin with `sb3`."""
    bar: str
    """The limit of the ratio: a minimum of speeds, a maximum of costs and shares."""
    ratio: Callable[[Speeds], float] = over_sb3
    steps: int = 1024
    """Environment steps of a repetition, rounded up to whole rollouts."""
    repetitions: int = 3
    threads: int = 1
    """Threads of torch, as a run's config has them."""
    unit: str = "steps_per_s"


class Measurement(NamedTuple):
    """A benchmark with its numbers."""

    benchmark: Benchmark
    threads: int
    repetitions: list[dict[str, float]]
    """The measurements of all workloads, repetition by repetition."""

    @property
    def ratios(self) -> list[float]:
        """The ratio of every repetition."""
        return [self.benchmark.ratio(speeds) for speeds in self.repetitions]

    def medians(self) -> dict[str, float]:
        """Medians over repetitions, by workload."""
        return {
            name: median(speeds[name] for speeds in self.repetitions)
            for name in self.benchmark.works
        }

    def to_dict(self) -> dict[str, Any]:
        """Its object in the JSON file; speeds of a benchmark of memory are null."""
        found, unit = self.medians(), self.benchmark.unit
        speeds = found if unit == "steps_per_s" else {}
        best = max((speed for name, speed in speeds.items() if name.startswith(SB3)), default=None)
        return {
            "name": self.benchmark.name,
            "hubrl_steps_per_s": speeds.get(HUBRL),
            "sb3_steps_per_s": best,
            "ratio": median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
            "repetitions": len(self.repetitions),
            "threads": self.threads,
            "n_envs": self.benchmark.works[HUBRL].n_envs,
            "task": self.benchmark.works[HUBRL].config["task"],
            "what": self.benchmark.what,
            "bar": self.benchmark.bar,
            **{
                f"{name}_{unit}": value
                for name, value in found.items()
                if not speeds or name not in (HUBRL, SB3)
            },
        }


def measure(
    benchmark: Benchmark,
    *,
    steps: int | None = None,
    repetitions: int | None = None,
    threads: int | None = None,
) -> Measurement:
    """Time a benchmark's workloads in turn, so that other load of the machine affects all of them.

    Neither the set-up is timed nor a first piece of each workload, which fills caches and buffers.

    Args:
        benchmark: The benchmark, whose own numbers are the defaults of all others.
        steps: Smallest number of environment steps of a repetition.
        repetitions: Number of repetitions.
        threads: Threads of torch.

    Raises:
        BadConfig: If a task needs a package that is not installed.
    """
    threads = threads or benchmark.threads
    with _threads(threads), ExitStack() as stack:
        running = {
            name: stack.enter_context(closing(work.start()))
            for name, work in benchmark.works.items()
        }
        if benchmark.unit == "steps_per_s":
            for work in running.values():
                work.measure(1)
        rounds = range(repetitions or benchmark.repetitions)
        found = [
            {name: work.measure(steps or benchmark.steps) for name, work in running.items()}
            for _ in rounds
        ]
    return Measurement(benchmark, threads, found)


def profile_workloads(
    benchmark: Benchmark, *, steps: int | None = None, threads: int | None = None
) -> dict[str, dict[str, float]]:
    """Milliseconds of an environment step by part, for every training of a benchmark.

    Arguments are those of `measure`.
    """
    found = {}
    with _threads(threads or benchmark.threads):
        for name, work in benchmark.works.items():
            if type(work) is Learning:
                with closing(work.start()) as learner:
                    found[name] = profile(learner, steps or benchmark.steps)
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_units() -> list[str]:
    """The processor's units for matrices and vectors, best first; empty if unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return [name for flag, name in MATRIX_UNITS.items() if flag in flags]


def machine() -> str:
    """The machine and its packages, in a sentence."""
    versions = collect_versions()
    shown = [
        name
        for name in ("python", "torch", "stable-baselines3", "gymnasium", "ale-py")
        if versions[name]
    ]
    units = ", ".join(matrix_units()) or "matrix units unknown"
    packages = ", ".join(f"{name} {versions[name]}" for name in shown)
    return f"{os.cpu_count() or 1} cores ({platform.machine()}; {units}), {packages}."


def write_json(measured: Sequence[Measurement], path: Path) -> None:
    """Write one object a benchmark, with the machine's units and versions in each."""
    where = {"matrix_units": matrix_units(), "versions": collect_versions()}
    write_atomically(
        path, json.dumps([{**one.to_dict(), **where} for one in measured], indent=2) + "\n"
    )


def write_results(
    measured: Sequence[Measurement], json_file: Path | None, markdown_file: Path | None
) -> None:
    """Write the numbers and the table, each to a file if one is given."""
    if json_file:
        write_json(measured, json_file)
    if markdown_file:
        write_atomically(markdown_file, markdown(measured))


def markdown(measured: Sequence[Measurement]) -> str:
    """The machine, and a table with one line a benchmark."""
    rows = [
        f"| {' | '.join(cells)} |"
        for cells in ([*COLUMNS], ["---"] * len(COLUMNS), *(cells_of(one) for one in measured))
    ]
    return f"{machine()}\n\n" + "\n".join(rows) + "\n"


COLUMNS = (
    "line",
    "what",
    "task, environments",
    "hubrl",
    "the others",
    "ratio",
    "must reach",
    "threads",
)


def cells_of(measured: Measurement) -> list[str]:
    """A measurement's line of the table."""
    line, found = measured.benchmark, measured.medians()
    unit = "steps/s" if line.unit == "steps_per_s" else "bytes"
    others = ", ".join(f"{name} {value:.0f}" for name, value in found.items() if name != HUBRL)
    ratio = (
        f"{median(measured.ratios):.2f} ({min(measured.ratios):.2f} to {max(measured.ratios):.2f})"
    )
    where = f"{line.works[HUBRL].config['task']}, {line.works[HUBRL].n_envs}"
    return [
        line.name,
        line.what,
        where,
        f"{found[HUBRL]:.0f} {unit}",
        others,
        ratio,
        line.bar,
        str(measured.threads),
    ]
