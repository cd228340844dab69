"""Output of the command line: tables, progress bars, options."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from hubrl.experiments.evaluation import Played
from hubrl.hub import Hub

# Tables in a file or a pipe keep their columns whole.
console = Console(width=None if sys.stdout.isatty() else 160)


def print_line(text: str) -> None:
    """Print a sentence without wrapping or markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; no header if it is empty."""
    table = Table(*columns, show_header=any(columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_played(played: Sequence[Played]) -> None:
    """Print the returns of agents, if there are any."""
    columns = ("agent", "mean return", "± std", "episodes", "mean length")
    rows = [
        (
            one.name,
            *spread(one.mean, one.std),
            str(len(one.returns)),
            f"{sum(one.lengths) / len(one.lengths):.0f}",
        )
        for one in played
    ]
    if rows:
        print_table(columns, rows)


def print_profile(
    benchmark: str, milliseconds: Mapping[str, Mapping[str, float]], meanings: Mapping[str, str]
) -> None:
    """Print the time of a step by part, for every workload of a benchmark."""
    for workload, parts in milliseconds.items():
        total = sum(parts.values())
        print_line(f"{benchmark}, {workload}: {total:.3f} ms a step")
        rows = [
            (f"  {part}", f"{one:.3f} ms", f"{one / total:.0%}", meanings[part])
            for part, one in parts.items()
        ]
        print_table(("part", "a step", "share", ""), rows)


def print_option(name: str, annotation: Any, default: Any) -> None:
    """Print an option with its type and default."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    print_line(f"    {name}: {text.replace('typing.', '')} = {default!r}")


def spread(mean: float, std: float | None) -> tuple[str, str]:
    """A mean and a standard deviation as text."""
    return f"{mean:.1f}", f"{std or 0:.1f}"


def short(value: object) -> str:
    """A value as text; None is empty."""
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def progress_bars() -> Progress:
    """Progress bars on stderr that disappear at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, as a function of the finished number."""
    with progress_bars() as bars:
        bar = bars.add_task(name, total=total)
        yield lambda done: bars.update(bar, completed=done)


@contextmanager
def source_bars(hub: Hub, episodes: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each source, as a function of its name and its finished episodes."""
    with progress_bars() as bars:
        by_name = {source.name: bars.add_task(source.name, total=episodes) for source in hub}
        yield lambda name, done: bars.update(by_name[name], completed=done)


class StepsBar(BaseCallback):
    """A progress bar of environment steps.

    Args:
        update: The bar, as a function of the finished steps.
    """

    def __init__(self, update: Callable[[int], None]) -> None:
        super().__init__()
        self.update = update

    def _on_step(self) -> bool:
        self.update(self.num_timesteps)
        return True
