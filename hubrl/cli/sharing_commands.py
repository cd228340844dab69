"""The commands that share: `hubrl push` and `hubrl hub push | pull | search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubrl.cli.arguments import Overwrite, RunArgument
from hubrl.cli.console import output, print_line, print_table, spinner
from hubrl.cli.hub_commands import Folder, HubLocation, hub_app, show

if TYPE_CHECKING:
    from hubrl.sharing import Candidate

Repository = Annotated[
    str, typer.Argument(help="owner/name on Hugging Face; it is made if needed.")
]
Licence = Annotated[
    str | None,
    typer.Option(
        help="Licence as Hugging Face names it (mit); the sources' common one by default."
    ),
]
Private = Annotated[
    bool, typer.Option("--private", help="Make the repository private, if it is made.")
]


def push(
    folder: RunArgument,
    repository: Repository,
    video: Annotated[
        Path | None, typer.Option(help="A video of the agent; the run's newest by default.")
    ] = None,
    licence: Licence = None,
    private: Private = False,
) -> None:
    """Share a finished run's agent on Hugging Face."""
    from hubrl.experiments.shared_run import push_run

    with spinner("Pushing the agent"):
        location = push_run(folder, repository, video=video, licence=licence, private=private)
    _print_location(location, f"`hubrl evaluate {location}` plays it")


@hub_app.command("push")
def push_hub(
    folder: HubLocation, repository: Repository, licence: Licence = None, private: Private = False
) -> None:
    """Write a hub to a repository of Hugging Face, with a model card."""
    from hubrl.hub import Hub

    with spinner("Pushing the hub"):
        location = Hub.load(folder).push_to_hub(repository, licence=licence, private=private)
    _print_location(location, f"in a config it is `hub: {location}`")


@hub_app.command("pull")
def pull_hub(
    location: Annotated[str, typer.Argument(help="hf://owner/name[/folder][@revision].")],
    folder: Folder,
    overwrite: Overwrite = False,
) -> None:
    """Copy a hub from Hugging Face to a folder."""
    from hubrl.sharing import pull_folder

    with spinner("Downloading the hub"):
        pull_folder(location, folder, overwrite=overwrite)
    show(str(folder))


@hub_app.command()
def search(
    task: Annotated[str, typer.Option(help="Gymnasium id; its version is ignored.")],
    limit: Annotated[int, typer.Option(min=1, help="Greatest number of agents.")] = 20,
) -> None:
    """List agents for a task that others share on Hugging Face.

    Whether their spaces fit is known when they are read.
    """
    from hubrl.sharing import search_agents

    with spinner("Searching"):
        found = search_agents(task, limit=limit)
    columns = ("agent", "library", "tasks", "return", "downloads", "licence", "")
    if not found:
        print_line(f"Hugging Face lists no agent for {task} that hubrl reads.")
    if found or output.json:
        print_table(columns, [_cells(one) for one in found], [one._asdict() for one in found])


def _cells(one: "Candidate") -> list[str]:
    used, gated = str(one.downloads), "gated" if one.gated else ""
    return [one.location, one.library, one.tasks, one.returns, used, one.licence, gated]


def _print_location(location: str, then: str) -> None:
    print_table(("", ""), [("pushed to", location)], {"location": location})
    print_line(f"{then[0].upper()}{then[1:]}.")
