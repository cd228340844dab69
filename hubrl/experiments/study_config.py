"""The YAML file of a study: agents, hubs, methods and the cases that combine them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.formats.limits import OWN_YAML
from hubrl.formats.schema import Schema, first_problem, read_yaml

ZERO_SHOT, ORACLE, RANDOM, HUMAN = "zero-shot", "oracle", "random", "human"
"""Methods without training: every source alone, the source that the task marks as best, uniformly
random actions, and the published score of a human player of an Atari game."""

WITHOUT_TRAINING = (ZERO_SHOT, ORACLE, RANDOM, HUMAN)


class StudyAgent(Schema):
    """A source of the study."""

    agent: str
    """A path from the study's folder, `hf://owner/name[/file][@revision]`, either with a companion
    behind a comma, or `random:<seed>`, an untrained PPO."""
    observes: tuple[int, ...] | tuple[str, ...] | dict[str, str] | str | None = None
    """See `Source.adapted`."""
    order: tuple[int, ...] | None = None
    signs: tuple[int, ...] | None = None


class StudyMethod(Schema):
    """A learning method: the fields of a run's config that define it."""

    each_source: bool = False
    """Whether it stands for one method per source of the hub, `<method>:<source>`."""
    set: dict[str, Any] = {}
    """Fields of the run's config, over those of the study and the case; mappings are merged."""


class OracleRule(Schema):
    """The best source at every step, by an attribute of the task."""

    attribute: str
    """Attribute of the environment with the regime of the coming step."""
    sources: dict[int, str]
    """The source that acts for each value of the attribute."""


class StudyCase(Schema):
    """One target with one hub."""

    target: str | None = None
    """Name in the results, the case's by default; cases of one target share their scratch runs."""
    hub: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the study's."""
    oracle: OracleRule | None = None
    controls: bool = False
    """Whether `hub-pathway` is also evaluated with a blinded router (`router_controls`)."""
    set: dict[str, Any]
    """Fields of the run's config: task, task_kwargs, steps and so on."""
    tuned: dict[str, dict[str, Any]] = {}
    """Fields of the run's config for single methods of this case."""


class Study(Schema):
    """A whole study."""

    seeds: tuple[int, ...] = Field(min_length=1)
    agents: dict[str, StudyAgent]
    hubs: dict[str, tuple[str, ...]]
    methods: dict[str, StudyMethod]
    cases: dict[str, StudyCase]
    set: dict[str, Any] = {}
    """Fields of every run's config."""

    @property
    def all_methods(self) -> list[str]:
        """The study's methods and those without training."""
        return [*self.methods, *WITHOUT_TRAINING]

    def fields(self, case: str, method: str | None = None) -> dict[str, Any]:
        """Merged fields of a run's config, for a case alone or with a method."""
        own = self.cases[case]
        if method is None:
            return merged(self.set, own.set)
        return merged(
            self.set,
            own.set,
            self.methods.get(method, StudyMethod()).set,
            own.tuned.get(method, {}),
        )


def read_study(path: Path) -> Study:
    """A study from YAML.

    Raises:
        BadFile: If the file cannot be read.
        BadConfig: If it is not a study.
        UnknownName: If a case uses a name that the study does not define.
    """
    try:
        study = Study.model_validate(read_yaml(path, OWN_YAML))
    except ValidationError as error:
        raise BadConfig(f"{path}: {first_problem(error)}.") from error
    for name, case in study.cases.items():
        check_known(f"hub of case {name!r}", [case.hub], study.hubs)
        check_known(f"method of case {name!r}", case.methods, study.all_methods)
        check_known(f"tuned method of case {name!r}", case.tuned, case.methods)
        check_known(f"agent of hub {case.hub!r}", study.hubs[case.hub], study.agents)
        if ORACLE in case.methods and case.oracle is None:
            raise BadConfig(
                f"{path}: case {name!r} has the method 'oracle' without a rule; add `oracle:` "
                "to it."
            )
    return study


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged recursively, later ones over earlier; a null removes a key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return {key: value for key, value in result.items() if value is not None}


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UnknownName: With the nearest known name.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownName(unknown(kind, name, known))
