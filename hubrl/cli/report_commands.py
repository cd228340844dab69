"""The commands that show what happened: explain, report, enjoy, compare."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hubrl.cli.arguments import RunArgument, Seed, parse_seeds
from hubrl.cli.console import (
    console,
    output,
    print_fields,
    print_line,
    print_table,
    source_bars,
    spinner,
)
from hubrl.cli.study_commands import with_progress
from hubrl.errors import BadConfig, BadFile
from hubrl.experiments.seeds import EVALUATION_SEED


def explain(folder: RunArgument) -> None:
    """Say in a few plain sentences what happened in a run."""
    from hubrl.reports.explain import explain as explain_run
    from hubrl.reports.run_log import RunLog

    with spinner(f"Reading {folder}"):
        sentences = explain_run(RunLog(folder))
    if output.json:
        output.results.append(sentences)
    for sentence in sentences if not output.json else ():
        console.print(sentence, soft_wrap=True, highlight=False)


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a finished run, or of a study's results.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the folder by default.")
    ] = None,
    play: Annotated[
        int,
        typer.Option(
            min=0, help="Episodes of every source untouched, where a run did not measure them."
        ),
    ] = 0,
) -> None:
    """Write one HTML page about a run or a study.

    The page holds everything that it shows, and opens without a network.
    """
    from hubrl.experiments.run_folder import Run
    from hubrl.reports.run_page import play_sources, write_run_page

    if (folder / "runs.csv").exists():
        from hubrl.reports.study_page import write_study_page

        with spinner(f"Drawing {folder}"):
            page = write_study_page(folder, out)
    elif (folder / "config.yaml").exists():
        hub = Run(folder).hub if play else None
        if hub is not None:
            with source_bars(hub, play) as on_step:
                play_sources(folder, play, on_step)
        with spinner(f"Drawing {folder}"):
            page = write_run_page(folder, out)
    else:
        raise BadFile(
            f"{folder} is neither a run (it has no config.yaml) nor a study's results (it has no "
            "runs.csv)."
        )
    print_line(f"{page}: open it in a browser.")
    if output.json:
        print_fields({"page": page})


def enjoy(
    folder: RunArgument,
    video: Annotated[
        Path | None,
        typer.Option(
            help="File to write, .mp4 or .gif, instead of a window; in the run's folder it becomes "
            "part of its report."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Most steps to show.")] = 1000,
    seed: Seed = EVALUATION_SEED,
) -> None:
    """Show or film an episode, with pathway weights and who acts."""
    try:
        from hubrl.reports.video import enjoy as enjoy_run
    except ImportError as error:
        raise BadConfig(
            f"A picture needs a package that is not installed ({error}); install hubrl[video]."
        ) from error
    with spinner(f"Playing {folder}"):
        shares = enjoy_run(folder, video, steps=steps, seed=seed)
    rows = [(name, f"{share:.0%}") for name, share in shares.items()]
    print_table(("pathway", "acted"), rows, shares)
    if video is not None:
        print_line(f"{video} is written.")


def compare(
    config: Annotated[Path, typer.Argument(help="A config's YAML file.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, with commas between; `method:source` for one source, `zero-shot` for "
            "the sources untouched."
        ),
    ] = "scratch,hub-pathway",
    seeds: Annotated[str, typer.Option(help="Seeds, as 1-5 or 1,3.")] = "1-3",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, repeatable; values are YAML.")
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")
    ] = 2,
) -> None:
    """Compare methods on a config's task over seeds.

    Trains what is missing. Finished runs are kept, also those of methods that are not named now.
    """
    try:
        from hubrl.experiments.comparison import write_comparison
        from hubrl.experiments.study import run_study
        from hubrl.experiments.tables import chosen_rows, returns_by_method
        from hubrl.reports.study_page import read_runs, write_study_page
    except ImportError as error:
        raise BadConfig(
            f"A comparison needs a package that is not installed ({error}); install "
            "hubrl[study,report]."
        ) from error
    name = f"{config.stem}-compared"
    chosen, where = methods.split(","), results / name
    named: dict[str, Any] = {"methods": chosen, "seeds": parse_seeds(seeds)}
    study = write_comparison(config, chosen, named["seeds"], where, changes or [])
    run = partial(run_study, study, folder=folder / name, results=where, jobs=jobs, **named)
    failed = with_progress(name, run)
    if failed and not (where / "runs.csv").exists():
        raise typer.Exit(1)
    runs = chosen_rows(read_runs(where), **named)
    if failed and not len(runs):
        raise typer.Exit(1)
    returns = returns_by_method(runs, config.stem, "hub")
    _print_compared({method: values for method, values in returns.items() if values})
    page = write_study_page(where, **named)
    print_line(f"{page}: open it in a browser. {len(failed)} runs failed.")
    if failed:
        raise typer.Exit(1)


def _print_compared(returns: dict[str, list[float]]) -> None:
    """Print the methods' returns, the best first."""
    from hubrl.experiments.statistics import estimate

    ranked = sorted(returns, key=lambda method: -estimate(returns[method]).value)
    rows = [(one, str(estimate(returns[one])), str(len(returns[one]))) for one in ranked]
    columns = ("method", "return at the end, IQM (95 %)", "runs")
    print_table(columns, rows, {one: returns[one] for one in ranked})
