"""The spelling of a source, the same everywhere: a path, `hf://owner/name`, or a pair of those."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hubrl.errors import BadConfig
from hubrl.formats.files import is_there

HUGGING_FACE = "hf://"

Location = str | Path
"""A path, or `hf://owner/name[/file][@revision]`."""

AgentLocation = Location | tuple[Location, Location]
"""A location, `"agent.zip,statistics.pkl"`, or a tuple of the two."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

EXPECTED = "expected hf://owner/name, hf://owner/name/file.zip or either with @revision"


class Repository(NamedTuple):
    """A repository of Hugging Face, or a file or folder in one."""

    name: str
    """Owner and name, with a slash between them."""
    file: str = ""
    """File or folder inside it; empty for the whole."""
    revision: str | None = None
    """Branch, tag or commit; none for the newest."""

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUGGING_FACE}{self.name}{file}{revision}"


def is_remote(location: object) -> bool:
    """Whether a location is on Hugging Face, also where pathlib took away a slash of it."""
    return isinstance(location, str | Path) and str(location).startswith("hf:/")


def parse_repository(location: Location) -> Repository:
    """The repository of `hf://owner/name[/file][@revision]`.

    Raises:
        BadConfig: If it is spelled otherwise, or leads out of the repository.
    """
    text = re.sub("^hf://?", "", str(location))
    path, _, revision = text.partition("@")
    owner, name, *inside = path.rstrip("/").split("/") if path.count("/") else [path, ""]
    whole = f"{owner}/{name}"
    if not REPOSITORY.fullmatch(whole) or not {"", ".", ".."}.isdisjoint(inside):
        raise BadConfig(f"{str(location)!r} was given; {EXPECTED}.")
    return Repository(whole, str(PurePosixPath(*inside)) if inside else "", revision or None)


def parse_repository_name(text: str) -> str:
    """Owner and name of a repository to write to, with or without `hf://`.

    Raises:
        BadConfig: If it has another form, or names a file or a revision.
    """
    name = text.removeprefix(HUGGING_FACE)
    if not REPOSITORY.fullmatch(name):
        raise BadConfig(f"The repository {text!r} was given; expected owner/name.")
    return name


def split_pair(
    agent: AgentLocation, companion: Location | None = None
) -> tuple[Location, Location | None]:
    """An agent's location and that of its statistics or card, if it names one.

    Args:
        agent: A location, `"agent.zip,statistics.pkl"`, or a tuple of the two.
        companion: The second of the two, given separately.

    Raises:
        BadConfig: If it is no location, or names two companions.
    """
    parts: tuple[Location, ...]
    if isinstance(agent, tuple):
        parts = agent
    elif isinstance(agent, str) and "," in agent and not _exists(Path(agent)):
        parts = tuple(part.strip() for part in agent.split(","))
    else:
        parts = (agent,)
    if companion is not None:
        parts = (*parts, companion)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, str | Path) for part in parts):
        raise BadConfig(
            f"{_described(agent)} was given; expected an agent: a file or folder, hf://owner/name, "
            "a file with its statistics or card, or in Hub.from_agents a hubrl.Source or a model."
        )
    return parts[0], parts[1] if len(parts) == 2 else None


def located(agent: str, folder: Path) -> str:
    """A spelling whose relative paths begin at a folder; repositories stay as they are."""
    if _exists(folder / agent):
        return str(folder / agent)
    parts = [part.strip() for part in agent.split(",")]
    return ",".join(part if is_remote(part) else str(folder / part) for part in parts)


def _exists(path: Path) -> bool:
    return is_there(path) or is_there(path, folder=True)


def _described(agent: object) -> str:
    """A location as it was given, and anything else by its type: a model's text is no name."""
    return repr(agent) if isinstance(agent, str | Path | tuple) else type(agent).__name__
