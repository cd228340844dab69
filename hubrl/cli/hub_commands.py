"""The commands `hubrl hub ...`: build, extend, show, try and check hubs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubrl.cli.arguments import (
    Atari,
    Episodes,
    Kwargs,
    Overwrite,
    Seed,
    parse_constants,
    parse_indices,
    parse_kwargs,
    parse_observes,
    read_agent_argument,
)
from hubrl.cli.console import (
    print_help,
    print_line,
    print_played,
    print_table,
    short,
    source_bars,
    spinner,
    spread,
)
from hubrl.errors import BadConfig, SpaceMismatch

if TYPE_CHECKING:
    from hubrl.experiments.evaluation import Check
    from hubrl.formats.cards import Preprocessing
    from hubrl.sources.source import Source

hub_app = typer.Typer(rich_markup_mode=None)


@hub_app.callback(invoke_without_command=True)
def hub_help(context: typer.Context) -> None:
    """Build, extend, show, try, check and share hubs."""
    print_help(context)


Folder = Annotated[Path, typer.Argument(help="Folder of the hub.")]
HubLocation = Annotated[str, typer.Argument(help="Folder of the hub, or hf://owner/name.")]


@hub_app.command()
def build(
    folder: Folder,
    agent: Annotated[
        list[str],
        typer.Option(
            "--agent",
            help="A zip, folder, card, weights or hf://owner/name, repeatable; "
            "`agent.zip,statistics.pkl` for both.",
        ),
    ],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Name of each agent, in order.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a hub's folder from agents in any readable form."""
    from hubrl.hub import Hub

    with spinner("Reading agents"):
        Hub.from_agents([read_agent_argument(text) for text in agent], name or None).save(
            folder, overwrite=overwrite
        )
    show(str(folder))


@hub_app.command()
def add(
    folder: Folder,
    agent: Annotated[
        str, typer.Option("--agent", help="A zip, folder, run, card, weights or hf://owner/name.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the source.")] = None,
    observes: Annotated[
        str | None,
        typer.Option(
            help="Entries of the target's observation, `0-16` or `3,1,2`; or keys of a Dict, "
            "`cam,arm`."
        ),
    ] = None,
    constants: Annotated[
        str | None,
        typer.Option(
            help="Values of the agent's entries that the target does not observe: `26=1,27-32=0`."
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="The agent's entry for every entry of the target's action: `1,0,2`."),
    ] = None,
    signs: Annotated[
        str | None, typer.Option(help="1 or -1 for every entry of the target's action: `1,-1,1`.")
    ] = None,
) -> None:
    """Add a source to a saved hub, perhaps adapted to a target's spaces."""
    from hubrl.hub import Hub

    with spinner("Reading the agent and the hub"):
        source = Hub.from_agents([read_agent_argument(agent)], None if name is None else [name])[0]
        adapted = source.adapted(
            observes=parse_observes(observes),
            constants=parse_constants(constants),
            order=parse_indices(order) if order else None,
            signs=parse_indices(signs) if signs else None,
        )
        Hub.load(folder).add(adapted).save(folder, overwrite=True)
    show(str(folder))


@hub_app.command()
def show(folder: HubLocation) -> None:
    """Show a hub's sources."""
    from hubrl.hub import Hub

    columns = ("source", "algorithm", "observes", "acts", "normalizes", "task", "return", "steps")
    with spinner("Reading the hub"):
        hub = Hub.load(folder)
    print_table(
        columns,
        [_card_cells(source) for source in hub],
        [source.card.to_dict() for source in hub],
    )


def _card_cells(source: "Source") -> list[str]:
    from hubrl.formats.spaces import describe

    card = source.card
    return [
        source.name,
        card.algorithm,
        describe(source.space),
        "none: an encoder alone" if source.actions is None else describe(source.actions),
        "yes" if card.normalisation else "no",
        short(card.task),
        "" if card.return_mean is None else " ± ".join(spread(card.return_mean, card.return_std)),
        short(card.steps),
    ]


@hub_app.command("try")
def try_sources(
    folder: HubLocation,
    task: Annotated[
        str, typer.Option(help="Gymnasium id; `module:id` where a module registers it.")
    ],
    kwargs: Kwargs = None,
    episodes: Episodes = 10,
    seed: Seed = 0,
    atari: Atari = False,
) -> None:
    """Play a task with each source untouched, before any training."""
    from hubrl.experiments.evaluation import Played, try_hub
    from hubrl.hub import Hub

    hub, task_kwargs = Hub.load(folder), parse_kwargs(kwargs)
    preprocessing: Preprocessing = "atari" if atari else "none"
    with source_bars(hub, episodes) as on_step:
        tried = list(
            try_hub(
                hub,
                task,
                task_kwargs,
                episodes=episodes,
                seed=seed,
                preprocessing=preprocessing,
                on_step=on_step,
            )
        )
    print_played([played for played in tried if isinstance(played, Played)])
    refused = [str(mismatch) for mismatch in tried if isinstance(mismatch, SpaceMismatch)]
    for sentence in refused:
        print_line(sentence)
    if len(refused) == len(tried):
        raise SpaceMismatch("No source of the hub fits the task.")


@hub_app.command()
def check(
    folder: HubLocation,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of each; the card's own number by default.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Replay each source on its own task and compare with its card.

    The exit code is 1 if one differs, and 2 if none was replayed.
    """
    from hubrl.experiments.evaluation import check_hub
    from hubrl.hub import Hub

    hub = Hub.load(folder)
    with source_bars(
        hub, episodes or max((source.card.episodes or 10) for source in hub)
    ) as on_step:
        checks = list(check_hub(hub, episodes=episodes, seed=seed, on_step=on_step))
    print_table(
        ("source", "replayed", "", "because"),
        [_check_cells(one) for one in checks],
        [_check_record(one) for one in checks],
    )
    if all(one.played is None for one in checks):
        raise BadConfig(f"No source of {folder} was replayed; the table says why.")
    if any(one.agrees is False for one in checks):
        raise typer.Exit(1)


def _check_cells(check: "Check") -> list[str]:
    verdict = {True: "agrees", False: "DIFFERS", None: "not replayed"}[check.agrees]
    played = "" if check.played is None else " ± ".join(spread(check.played.mean, check.played.std))
    return [check.name, played, verdict, check.sentence]


def _check_record(check: "Check") -> dict[str, Any]:
    played = check.played
    numbers = {} if played is None else {"mean": played.mean, "std": played.std}
    return {"source": check.name, "agrees": check.agrees, "because": check.sentence, **numbers}
