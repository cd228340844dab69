"""The runs of a study, each with its config and the digest by which its results are found."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.ppo import PPO

from hubrl.errors import BadConfig
from hubrl.experiments.config import RunConfig, parse_config
from hubrl.experiments.router_controls import MEAN_WEIGHTS, SHUFFLED_INPUT
from hubrl.experiments.study_config import (
    HUMAN,
    ORACLE,
    RANDOM,
    WITHOUT_TRAINING,
    OracleRule,
    Study,
    StudyMethod,
    merged,
    read_study,
)
from hubrl.hub import Hub
from hubrl.reading import read_agent, read_live
from hubrl.reading.locations import is_remote, located
from hubrl.sources.source import Source
from hubrl.tasks.make_env import make_env

CONTROLLED_METHOD = "hub-pathway"
UNTRAINED_FIELDS = ("task", "task_kwargs", "preprocessing", "eval_episodes")
"""The fields of a config that decide the result of a method without training."""

Key = tuple[str, ...]
"""Task, hub, method, seed and config digest of a row."""


class Job(NamedTuple):
    """One planned run of a study."""

    case: str
    task: str
    hub: str
    method: str
    source: str | None
    config: RunConfig
    oracle: OracleRule | None
    root: Path
    """Folder of the study's runs and hubs."""
    cards: str
    """Digest of the hub's cards, and so of its weights; empty without a hub."""
    controls: tuple[str, ...] = ()
    """Router controls that are played with the trained agent."""

    @property
    def label(self) -> str:
        """The method's name in the results."""
        return self.method if self.source is None else f"{self.method}:{self.source}"

    @property
    def digest(self) -> str:
        """Hash of everything but the code and the seed that changes the result."""
        fields = {
            key: value for key, value in self.config.to_dict().items() if key not in ("hub", "seed")
        }
        if self.method in WITHOUT_TRAINING:
            fields = {key: fields.get(key) for key in UNTRAINED_FIELDS}
        oracle = None if self.oracle is None or self.method != ORACLE else self.oracle.to_dict()
        return _digest([fields, self.cards, oracle])

    @property
    def folder(self) -> Path:
        """The run's own folder: `<task>/<hub>/<method>/<seed>-<digest>`."""
        method = self.method if self.source is None else f"{self.method}-{self.source}"
        return self.root / self.task / self.hub / method / f"{self.config.seed}-{self.digest}"

    @property
    def keys(self) -> list[Key]:
        """The keys of all rows that the run leaves; its own is the first."""
        labels = [self.label, *(f"{self.label}:{control}" for control in self.controls)]
        return [
            (self.task, self.hub, label, str(self.config.seed), self.digest) for label in labels
        ]


def plan(path: Path, folder: Path, agents: Path | None = None) -> list[Job]:
    """All runs of a study, ordered by seed; its hubs are saved on the way.

    Args:
        path: The study's YAML file.
        folder: Folder of the study's runs; hubs go to `hubs/` in it.
        agents: Folder with local copies of Hugging Face agents, `<name of the repository>.zip`.

    Raises:
        BadConfig: If the config of a run is invalid.
        BadFile: If an agent cannot be read.
    """
    study = read_study(path)
    cards: dict[str, str] = {}
    jobs: dict[Key, Job] = {}
    for name, case in study.cases.items():
        if case.hub not in cards:
            cards[case.hub] = _save_hub(study, name, folder, path.parent, agents)
        for job in _case_jobs(study, name, folder, cards[case.hub]):
            shared = jobs.setdefault((job.task, job.hub, job.label, str(job.config.seed)), job)
            if shared.digest != job.digest:
                raise BadConfig(
                    f"Case {name!r} has the target {job.task!r} of another case, "
                    f"but other settings for {job.label!r}; give it a target of its own."
                )
    return sorted(jobs.values(), key=lambda job: job.config.seed)


def _case_jobs(study: Study, name: str, folder: Path, cards: str) -> list[Job]:
    case = study.cases[name]
    jobs = []
    for method in case.methods:
        each_source = study.methods.get(method, StudyMethod()).each_source
        for source in study.hubs[case.hub] if each_source else [None]:
            for seed in case.seeds or study.seeds:
                jobs.append(_job(study, name, method, source, seed, folder, cards))
    return jobs


def _job(
    study: Study, name: str, method: str, source: str | None, seed: int, root: Path, cards: str
) -> Job:
    case = study.cases[name]
    chosen = {} if source is None else {"options": {"source": source}}
    fields = {
        **merged(study.fields(name, method), {"seed": seed}, chosen),
        "hub": str(hub_folder(root, case.hub).resolve()),
    }
    config = parse_config(fields, f"case {name!r}, method {method!r}")
    task = case.target or name
    if not config.needs_hub or method in (RANDOM, HUMAN):
        # Cases of one target share their runs without sources.
        return Job(
            name,
            task,
            "none",
            method,
            source,
            config.model_copy(update={"hub": None}),
            None,
            root,
            "",
        )
    controls = (
        (MEAN_WEIGHTS, SHUFFLED_INPUT) if case.controls and method == CONTROLLED_METHOD else ()
    )
    return Job(name, task, case.hub, method, source, config, case.oracle, root, cards, controls)


def hub_folder(root: Path, hub: str) -> Path:
    """The folder of a study's hub."""
    return root / "hubs" / hub


def _save_hub(study: Study, case: str, root: Path, start: Path, agents: Path | None) -> str:
    """Save the hub of a case; returns the digest of its cards."""
    name = study.cases[case].hub
    hub = Hub(
        [
            _read_source(study, member, study.fields(case), start, agents)
            for member in study.hubs[name]
        ]
    )
    hub.save(hub_folder(root, name), overwrite=True)
    return _digest([source.card.to_dict() for source in hub])


def _read_source(
    study: Study, name: str, fields: dict[str, Any], start: Path, agents: Path | None
) -> Source:
    given = study.agents[name]
    if given.agent.startswith("random:"):
        return _untrained_source(name, given.agent, fields)
    local = None if agents is None else agents / f"{given.agent.rpartition('/')[2]}.zip"
    fetched = is_remote(given.agent) and local is not None and local.exists()
    source = read_agent(str(local) if fetched else located(given.agent, start), name=name)
    return source.adapted(observes=given.observes, order=given.order, signs=given.signs)


def _untrained_source(name: str, agent: str, fields: dict[str, Any]) -> Source:
    """Untrained networks of PPO on the case's task."""
    seed = agent.partition(":")[2]
    if not seed.isdecimal():
        raise BadConfig(
            f"Agent {name!r} is {agent!r}; expected a seed behind the colon, as in random:1."
        )
    env = make_env(fields["task"], fields.get("task_kwargs"))
    source = read_live(PPO("MlpPolicy", env, seed=int(seed), device="cpu"), name)
    env.close()
    return source


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
