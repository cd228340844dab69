"""How fast hubrl is, in ratios to plain SB3, each measured in turn with it: `hubrl bench`."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from hubrl.bench.profiler import profile
from hubrl.bench.workloads import Learning, Work
from hubrl.experiments import run as runs
from hubrl.formats.files import write_atomically

OURS, SB3 = "ours", "sb3"

MATRIX_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
"""A processor's flags, as Linux spells them, and what they mean."""

Speeds = Mapping[str, float]
"""What every work of a line measured in one repetition."""


def over_sb3(speeds: Speeds) -> float:
    """How many times as fast as plain SB3, the better of its ways where it has several; of memory, what share of it."""
    return speeds[OURS] / max(speed for who, speed in speeds.items() if who.startswith(SB3))


def of_sb3s_default(speeds: Speeds) -> float:
    """What share of SB3's memory by default."""
    return speeds[OURS] / speeds[SB3]


def of_copies(speeds: Speeds) -> float:
    """What share of the memory that copies would take."""
    return speeds[OURS] / speeds["copied"]


def cost_of_more(speeds: Speeds) -> float:
    """How many times the time of one source's hub."""
    return speeds["one_source"] / speeds[OURS]


def outside(speeds: Speeds) -> float:
    """Share of the time in which neither the emulator nor a network works, as far as they take as long alone."""
    return 1 - speeds[OURS] / speeds["emulator"] - speeds[OURS] / speeds["kernels"]


class Line(NamedTuple):
    """One line of the table: work that is compared."""

    name: str
    what: str
    """In words."""
    works: Mapping[str, Work]
    """By who does it: `ours`, and plain SB3 under names that begin with `sb3`."""
    bar: str
    """What the ratio must reach; a cost or a share has to stay below."""
    ratio: Callable[[Speeds], float] = over_sb3
    steps: int = 1024
    """Environment steps of a repetition, rounded up to whole rollouts."""
    repetitions: int = 3
    threads: int = 1
    """Threads of torch, as a run's config has them."""
    unit: str = "steps_per_s"


class Measured(NamedTuple):
    """A line with its numbers."""

    line: Line
    threads: int
    repetitions: list[dict[str, float]]
    """What every work measured, repetition by repetition."""

    @property
    def ratios(self) -> list[float]:
        """The ratio of every repetition."""
        return [self.line.ratio(speeds) for speeds in self.repetitions]

    def medians(self) -> dict[str, float]:
        """By who did the work."""
        return {who: median(speeds[who] for speeds in self.repetitions) for who in self.line.works}

    def plain(self) -> dict[str, Any]:
        """The line of the JSON file. Numbers that a line does not have are null."""
        found, unit = self.medians(), self.line.unit
        speeds = found if unit == "steps_per_s" else {}
        best = max((speed for who, speed in speeds.items() if who.startswith(SB3)), default=None)
        return {
            "name": self.line.name,
            "ours_steps_per_s": speeds.get(OURS),
            "sb3_steps_per_s": best,
            "ratio": median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
            "repetitions": len(self.repetitions),
            "threads": self.threads,
            "n_envs": self.line.works[OURS].n_envs,
            "task": self.line.works[OURS].config["task"],
            "what": self.line.what,
            "bar": self.line.bar,
            **{f"{who}_{unit}": value for who, value in found.items() if unit != "steps_per_s" or who not in (OURS, SB3)},
        }


def measure(line: Line, *, steps: int | None = None, repetitions: int | None = None, threads: int | None = None) -> Measured:
    """Time a line's works in turn: what else the machine does meets all of them.

    Setting up is not timed, nor is a first piece of each work, which fills caches and buffers.

    Args:
        line: The line.
        steps: Environment steps of a repetition, at least; the line's own if not given.
        repetitions: How often; the line's own if not given.
        threads: Threads of torch; the line's own if not given.

    Raises:
        BadConfig: If a task needs a package that is not installed.
    """
    threads = threads or line.threads
    with _threads(threads), ExitStack() as stack:
        running = {who: stack.enter_context(closing(work.start())) for who, work in line.works.items()}
        if line.unit == "steps_per_s":
            for work in running.values():
                work.measure(1)
        rounds = range(repetitions or line.repetitions)
        found = [{who: work.measure(steps or line.steps) for who, work in running.items()} for _ in rounds]
    return Measured(line, threads, found)


def profiled(line: Line, *, steps: int | None = None, threads: int | None = None) -> dict[str, dict[str, float]]:
    """Milliseconds of an environment step by part, for every training of a line; arguments as of `measure`."""
    found = {}
    with _threads(threads or line.threads):
        for who, work in line.works.items():
            if type(work) is Learning:
                with closing(work.start()) as learner:
                    found[who] = profile(learner, steps or line.steps)
    return found


def cores() -> int:
    """How many the machine has."""
    return os.cpu_count() or 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_units() -> list[str]:
    """The processor's units for matrices and vectors, best first; none where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return [name for flag, name in MATRIX_UNITS.items() if flag in flags]


def machine() -> str:
    """What was measured on, in a sentence."""
    units = matrix_units()
    found = runs.versions()
    packages = ", ".join(
        f"{package} {found[package]}" for package in ("torch", "stable-baselines3", "gymnasium", "ale-py") if found[package]
    )
    return f"{cores()} cores ({platform.machine()}; {', '.join(units) or 'matrix units unknown'}), python {found['python']}, {packages}."


def write_json(measured: Sequence[Measured], path: Path) -> None:
    """One object a line, with the machine's units and versions in each."""
    where = {"matrix_units": matrix_units(), "versions": runs.versions()}
    write_atomically(path, json.dumps([{**one.plain(), **where} for one in measured], indent=2) + "\n")


def markdown(measured: Sequence[Measured]) -> str:
    """A table."""
    rows = [f"| {' | '.join(cells)} |" for cells in ([*COLUMNS], ["---"] * len(COLUMNS), *(cells_of(one) for one in measured))]
    return f"{machine()}\n\n" + "\n".join(rows) + "\n"


COLUMNS = ("line", "what", "task, environments", "ours", "the others", "ratio", "must reach", "threads")


def cells_of(measured: Measured) -> list[str]:
    """A line as it is printed."""
    line, found = measured.line, measured.medians()
    unit = "steps/s" if line.unit == "steps_per_s" else "bytes"
    others = ", ".join(f"{who} {value:.0f}" for who, value in found.items() if who != OURS)
    ratio = f"{median(measured.ratios):.2f} ({min(measured.ratios):.2f} to {max(measured.ratios):.2f})"
    where = f"{line.works[OURS].config['task']}, {line.works[OURS].n_envs}"
    return [line.name, line.what, where, f"{found[OURS]:.0f} {unit}", others, ratio, line.bar, str(measured.threads)]
