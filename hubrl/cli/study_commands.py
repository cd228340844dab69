"""The commands that measure: `hubrl study` and `hubrl bench`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from hubrl.cli.arguments import parse_seeds
from hubrl.cli.console import (
    output,
    print_fields,
    print_line,
    print_profile,
    print_table,
    progress_bars,
    spinner,
)
from hubrl.errors import BadConfig


def study(
    config: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
    agents: Annotated[
        Path | None, typer.Option(help="Folder with local copies of Hugging Face agents.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time, 2 by default; with --ray all that fit."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on the Ray cluster at host:port, or on this machine's with auto."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Run this case alone, repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Run this method alone, repeatable.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Run this seed alone, repeatable.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing; draw the finished runs.")
    ] = False,
) -> None:
    """Run a study's missing runs, and write its tables and figures."""
    try:
        from hubrl.experiments.figures import write_reports
        from hubrl.experiments.study import run_study
    except ImportError as error:
        raise BadConfig(
            f"A study needs a package that is not installed ({error}); install hubrl[study]."
        ) from error
    where = results / config.stem
    if not report:
        run = partial(run_study, config, folder=folder / config.stem, results=where, agents=agents)
        chosen = {"cases": case or (), "methods": method or (), "seeds": seed or ()}
        failed = with_progress(config.stem, partial(run, jobs=jobs, ray=ray, **chosen))
    with spinner(f"Drawing {where}"):
        write_reports(where)
    if report:
        return
    print_line(f"Results in {where}; {len(failed)} runs failed.")
    print_line(f"`hubrl report {where}` makes one page of them.")
    if output.json:
        print_fields({"results": where, "failed": len(failed)})
    if failed:
        raise typer.Exit(1)


def with_progress(name: str, run: Callable[..., Sequence[Any]]) -> Sequence[Any]:
    """The failed runs of a study, which are printed above its progress bar."""
    with progress_bars() as bars:
        bar = bars.add_task(name)

        def on_done(job: Any, problem: str | None) -> None:
            bars.advance(bar)
            if problem:
                bars.console.print(
                    f"{job.folder}: {problem}", soft_wrap=True, highlight=False, markup=False
                )

        def on_plan(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        return run(on_plan=on_plan, on_done=on_done)


def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Measure this benchmark alone, repeatable.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="File for the numbers as JSON, after each benchmark.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="File for the table as Markdown.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Environment steps of a repetition.")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Repetitions, in each of which all workloads run.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    names: Annotated[
        bool, typer.Option("--list", help="List the benchmarks and measure nothing.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print the parts of a step's time instead.")
    ] = False,
    to_score: Annotated[
        Path | None,
        typer.Option(
            help="A run's config: measure instead how long each method trains on its task until it "
            "earns what training from scratch ends with."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds with --to-score, as 1-5 or 1,3.")] = "1-3",
) -> None:
    """Measure speed and memory in ratios to plain SB3."""
    if to_score is not None:
        _bench_to_score(to_score, seeds)
        return
    from hubrl.bench import compare, profiler, suite

    chosen = suite.select(only or [])
    if names:
        print_table(
            ("benchmark", "what", "must reach"), [(one.name, one.what, one.bar) for one in chosen]
        )
        return
    print_line(compare.machine())
    measured = []
    for benchmark in chosen:
        try:
            if profile:
                times = compare.profile_workloads(benchmark, steps=steps, threads=threads)
                print_profile(benchmark.name, times, profiler.PARTS)
                continue
            measured.append(
                compare.measure(benchmark, steps=steps, repetitions=repetitions, threads=threads)
            )
        except BadConfig as error:
            if only:
                raise
            print_line(f"{benchmark.name} is left out: {error}")
            continue
        print_table((), [compare.cells_of(measured[-1])], measured[-1].to_dict())
        compare.write_results(measured, save, markdown)


def _bench_to_score(config: Path, seeds: str) -> None:
    """Print the seconds until each method earns what scratch ends with."""
    try:
        from hubrl.bench import compare
        from hubrl.bench.to_score import rivals, time_to_score
        from hubrl.experiments.study import run_study
    except ImportError as error:
        raise BadConfig(
            f"--to-score needs a package that is not installed ({error}); install hubrl[study]."
        ) from error

    def run(study: Path, **given: Any) -> Sequence[Any]:
        return with_progress(config.stem, partial(run_study, study, **given))

    with TemporaryDirectory() as folder:
        score, times = time_to_score(config, rivals(config), parse_seeds(seeds), Path(folder), run)
    print_line(compare.machine())
    print_line(f"Seconds until the training return is {score:.4g}, with which scratch ends:")
    columns = ("method", "seconds", "least to greatest", "over scratch's")
    rows = [one.cells(times[0]) for one in times]
    print_table(columns, rows, {one.method: one.seconds for one in times})
