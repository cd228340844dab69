"""The command `hubrl tune`: a search for a config's options and settings."""

from pathlib import Path
from typing import Annotated

import typer

from hubrl.cli.console import print_fields, print_line, progress_bar


def tune(
    config: Annotated[Path, typer.Argument(help="A config's YAML file.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials in all, with those of calls before.")
    ] = 30,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; tuning/<config> by default.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Search this alone, as options.hold; repeatable."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, repeatable; values are YAML.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds that each trial is trained with.")] = 1,
    sampler_seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
) -> None:
    """Search for the best options and settings of a config."""
    from hubrl.experiments.tuning import tune as search

    place = out or Path("tuning") / config.stem
    with progress_bar(config.stem, trials) as on_trial:
        tuned = search(
            config,
            place,
            overrides=changes or (),
            only=tuple(only or ()),
            trials=trials,
            seeds=seeds,
            sampler_seed=sampler_seed,
            on_trial=on_trial,
        )
    print_fields(
        {
            "best config": str(tuned.config),
            "trial": tuned.trial or "0, the config as it is",
            "mean return": tuned.value,
            "as it was given": tuned.first,
            **tuned.values,
        }
    )
    print_line(
        f"{tuned.completed} trials trained, {tuned.pruned} pruned. `hubrl train {tuned.config}` "
        "trains the best."
    )
