"""A hub: an ordered, immutable set of sources."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from pydantic import Field, ValidationError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from hubrl.errors import BadConfig, BadFile, UnknownName, check_format, unknown
from hubrl.formats.files import is_taken, is_there, new_folder
from hubrl.formats.hub_files import HUB_FILE, check_replaceable, copy_missing, foreign_files
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.schema import Schema, first_problem, read_yaml, write_yaml
from hubrl.hub.algorithm_kwargs import AlgorithmKwargs
from hubrl.reading import read_agent, read_live, read_live_policy
from hubrl.reading.hugging_face import local_copy
from hubrl.reading.locations import AgentLocation, Location, split_pair
from hubrl.routing.pathways import FRESH
from hubrl.selection.arm_evidence import TOGETHER_ARM as TOGETHER
from hubrl.sharing import hub_model_card, push_folder
from hubrl.sources.source import Source

HUB_FORMAT = 1

SHOWN_NAMES = 10
"""Most names in the text of a hub."""

RESERVED = {FRESH, TOGETHER, Path(HUB_FILE).stem}
"""Names that no source may have: of the fresh pathway, of all arms together, of the hub's file."""

Agent = AgentLocation | Source | BaseAlgorithm | BasePolicy
"""A file, folder or repository, perhaps with its statistics or card; a model, policy or source."""


class HubCard(Schema):
    """The card of a hub's folder, beside the cards of its sources."""

    format: int = HUB_FORMAT
    sources: tuple[str, ...] = Field(min_length=1)
    """The sources' names, in order."""


class Hub(AlgorithmKwargs):
    """Pretrained agents to learn from, in the order given.

    Args:
        sources: The sources; their names must differ.

    Raises:
        BadConfig: If there is none, two have one name, or a name is reserved.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)
        if not self._sources:
            raise BadConfig("A hub of no sources was given; expected at least one.")
        for source in self._sources:
            if not isinstance(source, Source):
                raise BadConfig(
                    f"{type(source).__name__} was given; expected a hubrl.Source, or "
                    "Hub.from_agents([...]) for paths and models."
                )
        names = [source.name for source in self._sources]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise BadConfig(
                f"Two sources are called {duplicates[0]!r}; give one of them another name."
            )
        reserved = sorted({*names} & RESERVED)
        if reserved:
            raise BadConfig(
                f"A source is called {reserved[0]!r}, which has a meaning of its own here; give "
                "it another name."
            )

    @classmethod
    def from_agents(
        cls,
        agents: Iterable[Agent],
        names: Sequence[str] | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> "Hub":
        """A hub of agents of any form; nothing in their files is executed.

        Args:
            agents: SB3 zips, RL Zoo folders, cards, weights with a card, `hf://owner/name`,
                sources, or models in memory; a pair, as a tuple or as `"agent.zip,stats.pkl"`, is
                a zip with its VecNormalize file, or weights with their card.
            names: Names of the sources; by default those of their files.
            limits: Limits on their files; wider ones for agents that are trusted.

        Raises:
            BadFile: If a file is missing, damaged or hostile.
            BadConfig: If there is no agent, or two have one name.
        """
        if isinstance(agents, str | Path):
            raise BadConfig(
                f"{str(agents)!r} was given; expected a list of agents: [{str(agents)!r}]."
            )
        if not isinstance(agents, Iterable):
            raise BadConfig(
                f"{type(agents).__name__} was given; expected a list of agents, as in [model]."
            )
        listed = list(agents)
        given: Sequence[str | None] = names if names is not None else [None] * len(listed)
        if len(given) != len(listed):
            raise BadConfig(f"{len(given)} names were given for {len(listed)} agents.")
        named = enumerate(zip(listed, given, strict=True))
        return cls(_source(agent, name, index, limits) for index, (agent, name) in named)

    @classmethod
    def load(cls, folder: Location, *, limits: Limits = DEFAULT_LIMITS) -> "Hub":
        """The hub that `save` or `push_to_hub` wrote; every weight file's sha256 is checked.

        Args:
            folder: The hub's folder, or `hf://owner/name[/folder][@revision]`.
            limits: Limits on its files; wider ones for a hub that is trusted.

        Raises:
            BadFile: If it is no hub, a file is missing or changed, it is of a newer format, or it
                cannot be downloaded.
            BadConfig: If the repository is misspelled, or huggingface_hub is not installed.
        """
        with local_copy(folder) as local:
            return cls(read_agent(card, limits=limits) for card in _cards_of(local, limits))

    def save(self, folder: str | Path, *, overwrite: bool = False, half: bool = False) -> None:
        """Write a folder: `hub.yaml`, and a card and a `.safetensors` file for each source.

        Args:
            folder: Path of the folder; it appears whole or not at all.
            overwrite: Whether it may replace an existing hub; other files in its folder stay.
            half: Whether weights are rounded to float16, for half the size.

        Raises:
            OutputExists: If the folder exists and may not be replaced, or is no hub.
            SourcesNotLoaded: If a source has no weights.
            NotWritten: If the system refuses; a hub that was there stays as it is.
        """
        folder = Path(folder).resolve()
        foreign: list[Path] = []
        if overwrite and is_taken(folder):
            check_replaceable(folder, (HUB_FILE,), "hub")
            foreign = foreign_files(folder)
        remedy = "choose another name, remove it, or allow overwriting"
        with new_folder(folder, overwrite=overwrite, what="The hub", remedy=remedy) as making:
            for source in self._sources:
                raw = source.to_bytes(half=half)
                # A source that was trained meanwhile is no longer the one its card was made for.
                card = source.card.model_copy(update={"sha256": hashlib.sha256(raw).hexdigest()})
                (making / f"{source.name}.safetensors").write_bytes(raw)
                (making / f"{source.name}.yaml").write_text(
                    write_yaml(card.to_dict()), encoding="utf-8"
                )
            (making / HUB_FILE).write_text(
                write_yaml(HubCard(sources=tuple(self.names)).to_dict()), encoding="utf-8"
            )
            copy_missing(foreign, making)

    def push_to_hub(
        self,
        repository: str,
        *,
        licence: str | None = None,
        private: bool = False,
        message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Write the hub to a repository of Hugging Face, with a model card; it is made if needed.

        Cards and weights are written as `save` writes them, never a pickle. Sources that are in
        the repository and not in this hub are removed from it, in the same commit.

        Args:
            repository: `owner/name`.
            licence: The hub's licence, as Hugging Face names it (`mit`); by default that of all
                sources, if they have one in common.
            private: Whether a repository that is made is private.
            message: Message of the commit.
            token: Access token that may write; by default the one that `hf auth login` stored.

        Returns:
            Location of the commit, for `Hub.load`: `hf://owner/name@commit`.

        Raises:
            BadConfig: If the repository is misspelled, or huggingface_hub is not installed.
            BadFile: If it cannot be written to.
            SourcesNotLoaded: If a source has no weights.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "hub"
            self.save(folder)
            cards = [source.card for source in self._sources]
            text = hub_model_card(repository, cards, licence)
            (folder / "README.md").write_text(text, encoding="utf-8")
            return push_folder(folder, repository, private=private, message=message, token=token)

    def add(self, agent: Agent, name: str | None = None) -> "Hub":
        """A new hub with one more source at the end."""
        return Hub([*self._sources, *Hub.from_agents([agent], None if name is None else [name])])

    @property
    def names(self) -> list[str]:
        """The sources' names, in order."""
        return [source.name for source in self._sources]

    @overload
    def __getitem__(self, which: int | str) -> Source: ...
    @overload
    def __getitem__(self, which: slice) -> "Hub": ...
    def __getitem__(self, which: int | str | slice) -> "Source | Hub":
        """A source by name or position, or a hub of some of them."""
        if isinstance(which, slice):
            return Hub(self._sources[which])
        if isinstance(which, int):
            return self._sources[which]
        if which not in self.names:
            raise UnknownName(unknown("source", which, self.names))
        return self._sources[self.names.index(which)]

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    def __repr__(self) -> str:
        names = self.names
        more = f", and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        return f"Hub({', '.join(names[:SHOWN_NAMES])}{more})"


def _source(agent: Agent, name: str | None, index: int, limits: Limits) -> Source:
    if isinstance(agent, Source):
        return agent if name in (None, agent.name) else agent.adapted(name)
    if isinstance(agent, BaseAlgorithm):
        return read_live(agent, name or f"{type(agent).__name__.lower()}-{index}")
    if isinstance(agent, BasePolicy):
        return read_live_policy(agent, name or f"policy-{index}")
    path, companion = split_pair(agent)
    return read_agent(path, companion, name=name, limits=limits)


def _cards_of(folder: Path, limits: Limits) -> list[Path]:
    """Paths of the cards of a hub's folder, in order.

    Raises:
        BadFile: If it is no hub, or it is of a newer format, or it has too many sources.
    """
    if not is_there(folder / HUB_FILE):
        raise BadFile(f"{folder} is no hub: it has no {HUB_FILE}; make one with `hubrl hub build`.")
    plain = read_yaml(folder / HUB_FILE, limits)
    check_format(plain, HUB_FORMAT, f"{folder} is a hub")
    try:
        card = HubCard.model_validate(plain)
    except ValidationError as error:
        raise BadFile(
            f"{folder / HUB_FILE} is not a hub's card: {first_problem(error)}."
        ) from error
    if len(card.sources) > limits.sources:
        raise BadFile(
            f"{folder} has {len(card.sources)} sources, {limits.sources} are allowed; widen "
            "hubrl.Limits if it is trusted."
        )
    return [_inside(folder, name) for name in card.sources]


def _inside(folder: Path, name: str) -> Path:
    """Path of a source's card in a hub's folder; a name that leads out of it is refused."""
    if Path(name).name != name:
        raise BadFile(f"{folder / HUB_FILE} names a source {name!r}, which is not a name.")
    return folder / f"{name}.yaml"
