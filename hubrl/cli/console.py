"""Output of the command line: results as tables or JSON, notes, progress bars."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from hubrl.experiments.evaluation import Played
    from hubrl.hub import Hub
    from hubrl.hub.described_options import DescribedOption

# Tables in a file or a pipe keep their columns whole.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
errors = Console(stderr=True)


@dataclass
class Output:
    """What the command that runs now prints, and its results so far.

    Args:
        json: Whether results are printed at the end as one JSON document, and nothing else.
        quiet: Whether notes and progress bars are left out.
    """

    json: bool = False
    quiet: bool = False
    results: list[Any] = field(default_factory=list)

    def begin(self, *, json: bool, quiet: bool) -> None:
        """Set how a command prints; results of an earlier one are forgotten."""
        self.json, self.quiet, self.results = json, quiet, []

    def finish(self) -> None:
        """Print the results as JSON, if that was asked for: one by itself, several as a list."""
        if self.json and self.results:
            one = self.results[0] if len(self.results) == 1 else self.results
            sys.stdout.write(json.dumps(one, indent=2, default=str) + "\n")
        self.results = []


output = Output()


def print_line(text: str) -> None:
    """Print a note without wrapping or markup: on stderr beside JSON, nowhere if quiet."""
    if not output.quiet:
        place = errors if output.json else console
        place.print(text, soft_wrap=True, highlight=False, markup=False)


def print_help(context: typer.Context) -> None:
    """Print the help of a group of commands that was called without one."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@contextmanager
def printed_as_notes() -> Iterator[None]:
    """Send what libraries print where notes go: stdout, stderr beside JSON, nowhere if quiet."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        place = nowhere if output.quiet else sys.stderr if output.json else sys.stdout
        with redirect_stdout(place):
            yield


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], records: Any | None = None
) -> None:
    """Print a result: rows in columns, with no header if it is empty; or JSON.

    Args:
        columns: Names of the columns.
        rows: Cells as text.
        records: The same as plain data for JSON; by default the cells by their columns.
    """
    if output.json:
        plain = [dict(zip(columns, row, strict=False)) if any(columns) else [*row] for row in rows]
        output.results.append(plain if records is None else records)
        return
    table = Table(*columns, show_header=any(columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print a result of named values, one a line."""
    print_table(("", ""), [(key, short(value)) for key, value in fields.items()], {**fields})


def print_played(played: "Sequence[Played]") -> None:
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
        print_table(columns, rows, [_played_record(one) for one in played])


def _played_record(played: "Played") -> dict[str, Any]:
    numbers = {"mean": played.mean, "std": played.std}
    lists = {"returns": list(played.returns), "lengths": list(played.lengths)}
    return {"agent": played.name, **numbers, **lists}


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


def print_options(title: str, options: "Sequence[DescribedOption]") -> None:
    """Print options with their types, defaults and meanings, under a title."""
    if options:
        print_line(f"\n{title}")
        columns = ("option", "type", "default", "meaning")
        rows = [(one.name, one.kind, repr(one.default), one.meaning) for one in options]
        print_table(columns, rows)


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
    return Progress(*columns, console=errors, transient=True, disable=output.quiet)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, as a function of the finished number; it ends full and never overflows."""
    with progress_bars() as bars:
        bar = bars.add_task(name, total=total)
        yield lambda done: bars.update(bar, completed=min(done, total))
        bars.update(bar, completed=total)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """A turning sign on stderr while something runs whose length is not known."""
    if output.quiet:
        yield
        return
    with errors.status(text):
        yield


@contextmanager
def source_bars(hub: "Hub", episodes: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each source, as a function of its name and its finished episodes."""
    with progress_bars() as bars:
        by_name = {source.name: bars.add_task(source.name, total=episodes) for source in hub}
        yield lambda name, done: bars.update(by_name[name], completed=done)
