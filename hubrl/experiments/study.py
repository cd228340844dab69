"""A study: methods on targets over seeds, from one YAML file; what is finished is never run again.

runs/<study>/<case>/<hub>/<method>/<seed>-<digest>/    one training each, see `hubrl.experiments.run`; the digest is of its config
results/<study>/runs.csv                       one row a run
results/<study>/curves.csv                     evaluations and training returns over steps
results/<study>/pathways.csv                   pathway weights over steps
results/<study>/table.md, *.png                what they say, see `hubrl.experiments.figures`
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError
from stable_baselines3.ppo import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hubrl import __version__
from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.experiments import run as runs
from hubrl.experiments.config import RunConfig, located, parse_config, read_config
from hubrl.experiments.evaluation import check_playable, play
from hubrl.experiments.finished_run import run_env, run_model
from hubrl.experiments.router_controls import MEAN_WEIGHTS, SHUFFLED_INPUT, play_controls
from hubrl.formats.files import write_atomically
from hubrl.formats.schema import Schema, first_problem, read_yaml
from hubrl.hub import Hub
from hubrl.reading import HUGGING_FACE, read_agent, read_live
from hubrl.sources.source import Source
from hubrl.tasks.make_env import make_env

ZERO_SHOT, ORACLE, HUB_PATHWAY = "zero-shot", "oracle", "hub-pathway"

RUN_COLUMNS = (
    "task",
    "hub",
    "method",
    "algorithm",
    "seed",
    "steps",
    "first_quarter_return",
    "mean_train_return",
    "final_return",
    "eval_return",
    "eval_std",
    "probe_steps",
    "probe_kept",
    "wall_s",
    "hubrl_version",
    "config",
)
CURVE_COLUMNS = ("task", "hub", "method", "seed", "kind", "step", "return")
PATHWAY_COLUMNS = ("task", "hub", "method", "seed", "step", "pathway", "weight")

WHICH = ["task", "hub", "method", "seed"]

Row = dict[str, str]

CURVE_POINTS = 50
"""Points of a training curve that are kept; each is the mean of its episodes."""


class StudyAgent(Schema):
    """A source of the study."""

    agent: str
    """A path, which starts at the study's folder; `hf://owner/name`; or `random:<seed>` for PPO's untrained networks."""
    observes: tuple[int, ...] | tuple[str, ...] | dict[str, str] | str | None = None
    """See `Source.adapted`."""
    order: tuple[int, ...] | None = None
    signs: tuple[int, ...] | None = None


class StudyMethod(Schema):
    """A way to learn: fields of the run's config that make it."""

    each_source: bool = False
    """Whether it is one method for each source of the hub, as `<method>:<source>`."""
    set: dict[str, Any] = {}
    """Fields of the run's config, over those of the study and of the case; mappings are merged."""


class OracleRule(Schema):
    """Who is best when: known to the task, hidden from the learners."""

    attribute: str
    """Attribute of the environment that says what holds for the coming step."""
    sources: dict[int, str]
    """Who acts for each of its values."""


class StudyCase(Schema):
    """One target, one hub."""

    target: str | None = None
    """What the target is called in the results; the case's own name if not given. Cases of one target share their scratch."""
    hub: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    """Other seeds than the study's."""
    oracle: OracleRule | None = None
    controls: bool = False
    """Whether `hub-pathway` is also played with a router that is blind, see `hubrl.experiments.router_controls`."""
    set: dict[str, Any]
    """Fields of the run's config: task, task_kwargs, steps and so on."""
    tuned: dict[str, dict[str, Any]] = {}
    """Fields of the run's config for single methods of this case."""


class Study(Schema):
    """The whole of it."""

    seeds: tuple[int, ...] = Field(min_length=1)
    agents: dict[str, StudyAgent]
    hubs: dict[str, tuple[str, ...]]
    methods: dict[str, StudyMethod]
    cases: dict[str, StudyCase]
    set: dict[str, Any] = {}
    """Fields of every run's config."""

    @property
    def hubs_in_use(self) -> list[str]:
        """The hubs that cases name, in order."""
        return list(dict.fromkeys(case.hub for case in self.cases.values()))


class Job(NamedTuple):
    """One row of the results to be."""

    case: str
    task: str
    hub: str
    method: str
    source: str | None
    config: RunConfig
    oracle: OracleRule | None
    folder: Path
    hub_folder: Path
    cards: str
    """Digest of the hub's cards, and so of its weights; empty without a hub."""
    controls: tuple[str, ...] = ()
    """Controls that are played with the trained agent."""

    @property
    def label(self) -> str:
        """The method as it stands in the results."""
        return self.method if self.source is None else f"{self.method}:{self.source}"

    @property
    def digest(self) -> str:
        """Changes with anything that changes the result, but for the code."""
        plain = {key: value for key, value in self.config.to_dict().items() if key not in ("hub", "seed")}
        if self.method in (ZERO_SHOT, ORACLE):
            plain = {key: plain.get(key) for key in ("task", "task_kwargs", "preprocessing", "eval_episodes")}
        oracle = None if self.oracle is None or self.method != ORACLE else self.oracle.to_dict()
        return _digest([plain, self.cards, oracle])

    @property
    def key(self) -> tuple[str, ...]:
        """What the row is found by."""
        return (self.task, self.hub, self.label, str(self.config.seed), self.digest)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """What all of its rows are found by."""
        labels = [self.label, *(f"{self.label}:{control}" for control in self.controls)]
        return [(self.task, self.hub, label, str(self.config.seed), self.digest) for label in labels]


def read_study(path: Path) -> Study:
    """A study from YAML.

    Raises:
        BadFile: If the file cannot be read.
        BadConfig: If it is not a study.
        UnknownName: If a case names what the study does not define.
    """
    try:
        study = Study.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadConfig(f"{path}: {first_problem(error)}.") from error
    for name, case in study.cases.items():
        _check_known(f"hub of case {name!r}", case.hub, study.hubs)
        for method in case.methods:
            _check_known(f"method of case {name!r}", method, [*study.methods, ZERO_SHOT, ORACLE])
        for method in case.tuned:
            _check_known(f"tuned method of case {name!r}", method, case.methods)
        for member in study.hubs[case.hub]:
            _check_known(f"agent of hub {case.hub!r}", member, study.agents)
        if ORACLE in case.methods and case.oracle is None:
            raise BadConfig(f"{path}: case {name!r} asks for method 'oracle' and has no oracle; say who is best when.")
    return study


def plan(path: Path, folder: Path, agents: Path | None = None) -> list[Job]:
    """All runs of a study, first seeds first; the hubs' folders are made.

    Args:
        path: The study's YAML file.
        folder: Where its runs live.
        agents: A folder with agents that are otherwise fetched from Hugging Face, as `<name of the repository>.zip`.

    Raises:
        BadConfig: If a run's config cannot be.
        BadFile: If an agent cannot be read.
    """
    study = read_study(path)
    cards = {name: _make_hub(study, name, folder / "hubs" / name, path.parent, agents) for name in study.hubs_in_use}
    jobs: dict[tuple[str, ...], Job] = {}
    for case_name, case in study.cases.items():
        for method in case.methods:
            spec = study.methods.get(method, StudyMethod())
            for source in study.hubs[case.hub] if spec.each_source else [None]:
                for seed in case.seeds or study.seeds:
                    job = _job(study, case_name, method, source, seed, folder, cards[case.hub])
                    shared = jobs.setdefault((job.task, job.hub, job.label, str(seed)), job)
                    if shared.digest != job.digest:
                        raise BadConfig(
                            f"Case {case_name!r} has the target {job.task!r} of another case, but other settings for "
                            f"{job.label!r}; give it a target of its own."
                        )
    return sorted(jobs.values(), key=lambda job: job.config.seed)


def run_study(
    path: Path,
    *,
    folder: Path,
    results: Path,
    agents: Path | None = None,
    jobs: int = 2,
    cases: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    on_plan: Callable[[int, int], None] = lambda done, total: None,
    on_done: Callable[[Job, str | None], None] = lambda job, problem: None,
) -> list[Job]:
    """Run what is missing, in some processes, and write the results after every run.

    A run that was interrupted goes on from its last checkpoint.

    Args:
        path: The study's YAML file.
        folder: Where its runs live.
        results: Where its results are written; what stands there is not run again.
        agents: A folder with agents that are otherwise fetched from Hugging Face.
        jobs: Processes.
        cases: The only cases to run now, by name; all if none is named.
        methods: The only methods to run now, by name; all if none is named.
        seeds: The only seeds to run now; all if none is named.
        on_plan: Told how many of these runs are done and how many there are.
        on_done: Told of every finished run, and of its problem if it failed.

    Returns:
        The runs that failed.
    """
    planned = plan(path, folder, agents)
    done = finished(results)
    study = read_study(path)
    for name in cases:
        _check_known("case", name, study.cases)
    for name in methods:
        _check_known("method", name, [*study.methods, ZERO_SHOT, ORACLE])
    for seed in seeds:
        _check_known("seed", str(seed), {str(job.config.seed) for job in planned})
    chosen = [
        job
        for job in planned
        if (not cases or job.case in cases) and (not methods or job.method in methods) and (not seeds or job.config.seed in seeds)
    ]
    missing = [job for job in chosen if not done.issuperset(job.keys)]
    on_plan(len(chosen) - len(missing), len(chosen))
    failed = []
    # Fresh processes: forked ones would share torch's threads and MuJoCo's state.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_study) as pool:
        futures = {pool.submit(run_job, job): job for job in missing}
        for future in as_completed(futures):
            job = futures[future]
            try:
                collected = future.result()
            except Exception as error:
                failed.append(job)
                on_done(job, f"{type(error).__name__}: {error}")
                continue
            try:
                keep(collected, results, planned)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            on_done(job, None)
    return failed


def end_with_study() -> None:
    """Let this process end when the study does, also where that is killed: what it trains goes on from its last checkpoint."""
    study = parent_process()
    assert study is not None

    def wait() -> None:
        study.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


class Collected(NamedTuple):
    """What a run leaves in the results."""

    runs: list[Row]
    curves: list[Row]
    pathways: list[Row]


def run_job(job: Job) -> Collected:
    """One run, from its last checkpoint if it was interrupted."""
    if job.method == ZERO_SHOT:
        return Collected(_zero_shot(job), [], [])
    if job.method == ORACLE:
        return Collected([_oracle(job)], [], [])
    if not (job.folder / "config.yaml").exists():
        runs.new_run(job.config, job.folder)
    if not (job.folder / "result.json").exists():
        runs.train(job.folder)
    result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    kept = [name for name, stays in (result["probe_kept"] or {}).items() if stays]
    row = _row(
        job,
        steps=result["steps"],
        first_quarter_return=_first_quarter(job),
        mean_train_return=result["mean_train_return"],
        final_return=result["final_return"],
        eval_return=result["eval_mean"],
        eval_std=result["eval_std"],
        probe_steps=result["probe_steps"],
        probe_kept=" ".join(kept),
        wall_s=result["wall_s"],
    )
    return Collected([row, *_control_rows(job)], list(_curve_rows(job)), list(_pathway_rows(job)))


def _control_rows(job: Job) -> Iterator[Row]:
    """The trained agent under each control."""
    if not job.controls:
        return
    seed = job.config.seed + runs.EVALUATION_SEED
    with closing(run_env(job.folder, job.config, seed=seed)) as env:
        model = run_model(job.folder, read_config(job.folder / "config.yaml"), env)
        played = play_controls(model, env, job.config.eval_episodes, seed)
    for control in job.controls:
        yield _row(job, method=f"{job.label}:{control}", steps=0, eval_return=played[control].mean, eval_std=played[control].std)


def finished(results: Path) -> set[tuple[str, ...]]:
    """The keys of the rows that stand in the results."""
    return set(_tuples(read_table(results / "runs.csv", RUN_COLUMNS), [*WHICH, "config"]))


def keep(collected: Collected, results: Path, planned: Sequence[Job]) -> None:
    """Add a run to the results; rows of runs that are not planned, or not so any more, are left out."""
    results.mkdir(parents=True, exist_ok=True)
    valid = {key for job in planned for key in job.keys}
    runs_table = read_table(results / "runs.csv", RUN_COLUMNS)
    stays = [key in valid or key[2].startswith(f"{ZERO_SHOT}:") for key in _tuples(runs_table, [*WHICH, "config"])]
    replaced = {tuple(row[column] for column in WHICH) for row in collected.runs}
    left_out = {key[: len(WHICH)] for key, stay in zip(_tuples(runs_table, WHICH), stays, strict=True) if not stay}
    _add(results / "runs.csv", runs_table, collected.runs, replaced | left_out)
    _add(results / "curves.csv", read_table(results / "curves.csv", CURVE_COLUMNS), collected.curves, replaced | left_out)
    _add(results / "pathways.csv", read_table(results / "pathways.csv", PATHWAY_COLUMNS), collected.pathways, replaced | left_out)
    write_atomically(results / "versions.json", json.dumps(runs.versions(), indent=2) + "\n")


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of the results, every value as it is written; empty if there is none yet."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns), dtype=str)
    # Results of before a column was added go on without it.
    return pd.read_csv(path, dtype=str, keep_default_na=False).reindex(columns=list(columns), fill_value="")


def _tuples(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, ...]]:
    return list(table[list(columns)].itertuples(index=False, name=None))


def _add(path: Path, old: pd.DataFrame, new: list[Row], replaced: set[tuple[str, ...]]) -> None:
    stays = np.array([key not in replaced for key in _tuples(old, WHICH)], dtype=bool)
    table = pd.concat([old.loc[stays], pd.DataFrame(new, columns=list(old.columns), dtype=str)])
    ordered = table.assign(order=table["seed"].astype(int)).sort_values(["task", "hub", "method", "order"], kind="stable")
    write_atomically(path, ordered.drop(columns="order").to_csv(index=False))


def _job(study: Study, case_name: str, method: str, source: str | None, seed: int, folder: Path, cards: str) -> Job:
    case = study.cases[case_name]
    task = case.target or case_name
    spec = study.methods.get(method, StudyMethod())
    hub_folder = folder / "hubs" / case.hub
    plain = _merged(study.set, case.set, spec.set, case.tuned.get(method, {}), {"seed": seed})
    if source is not None:
        plain = _merged(plain, {"options": {"source": source}})
    config = parse_config({**plain, "hub": str(hub_folder.resolve())}, f"case {case_name!r}, method {method!r}")
    label = method if source is None else f"{method}-{source}"
    if config.needs_hub:
        where = folder / task / case.hub / label / str(seed)
        controls = (MEAN_WEIGHTS, SHUFFLED_INPUT) if case.controls and method == HUB_PATHWAY else ()
        return _named_by_digest(Job(case_name, task, case.hub, method, source, config, case.oracle, where, hub_folder, cards, controls))
    # Scratch knows no hub: cases of one target share it.
    config = config.model_copy(update={"hub": None})
    return _named_by_digest(
        Job(case_name, task, "none", method, source, config, None, folder / task / "none" / label / str(seed), hub_folder, "")
    )


def _named_by_digest(job: Job) -> Job:
    """The same, in a folder that another config's run does not have."""
    return job._replace(folder=job.folder.with_name(f"{job.folder.name}-{job.digest}"))


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; a null takes a key away."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _merged(merged[key], value) if both else value
    return {key: value for key, value in merged.items() if value is not None}


def _make_hub(study: Study, name: str, folder: Path, start: Path, agents: Path | None) -> str:
    """Save a hub of the study; returns a digest of its cards."""
    case = next(case for case in study.cases.values() if case.hub == name)
    hub = Hub([_source(study, member, _merged(study.set, case.set), start, agents) for member in study.hubs[name]])
    hub.save(folder, overwrite=True)
    return _digest([source.card.to_dict() for source in hub])


def _source(study: Study, name: str, plain: dict[str, Any], start: Path, agents: Path | None) -> Source:
    given = study.agents[name]
    if given.agent.startswith("random:"):
        seed = given.agent.partition(":")[2]
        if not seed.isdecimal():
            raise BadConfig(f"Agent {name!r} is {given.agent!r}; expected a seed behind the colon, as in random:1.")
        env = make_env(plain["task"], plain.get("task_kwargs"))
        source = read_live(PPO("MlpPolicy", env, seed=int(seed), device="cpu"), name)
        env.close()
        return source
    local = None if agents is None else agents / f"{given.agent.rpartition('/')[2]}.zip"
    path = str(local) if given.agent.startswith(HUGGING_FACE) and local is not None and local.exists() else located(given.agent, start)
    return read_agent(path, name=name).adapted(observes=given.observes, order=given.order, signs=given.signs)


def _zero_shot(job: Job) -> list[Row]:
    """Every source untouched; the best of them is the method's own row."""
    rows = []
    for source in Hub.load(job.hub_folder):
        with closing(runs.raw_env(job.config)) as env:
            played = play(source, env, job.config.eval_episodes)
        rows.append(_row(job, method=f"{ZERO_SHOT}:{source.name}", steps=0, eval_return=played.mean, eval_std=played.std))
    best = max(rows, key=lambda row: float(row["eval_return"]))
    return [{**best, "method": ZERO_SHOT}, *rows]


def _oracle(job: Job) -> Row:
    assert job.oracle is not None
    with closing(runs.raw_env(job.config)) as env:
        played = play(Oracle(Hub.load(job.hub_folder), job.oracle, env), env, job.config.eval_episodes)
    return _row(job, steps=0, eval_return=played.mean, eval_std=played.std)


class Oracle:
    """Lets the source act that the task itself says is best."""

    def __init__(self, hub: Hub, rule: OracleRule, env: Any) -> None:
        self.hub, self.rule, self.env = hub, rule, env
        for name in rule.sources.values():
            check_playable(hub[name], env)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """SB3's `predict` on a batch of observations."""
        holds = self.env.get_attr(self.rule.attribute)
        said = {name: self.hub[name].predict(observation, deterministic=deterministic)[0] for name in set(self.rule.sources.values())}
        return np.stack([said[self.rule.sources[int(value)]][row] for row, value in enumerate(holds)]), None


def _row(job: Job, **values: Any) -> Row:
    known = {
        "task": job.task,
        "hub": job.hub,
        "method": job.label,
        "algorithm": job.config.algorithm,
        "seed": job.config.seed,
        "hubrl_version": __version__,
        "config": job.digest,
        **values,
    }
    return {column: _written(known.get(column)) for column in RUN_COLUMNS}


def _first_quarter(job: Job) -> float | None:
    """Mean return of the episodes that ended in the first quarter of the training."""
    earned = [value for step, value in runs.training_curve(job.folder) if step <= job.config.steps / 4]
    return float(np.mean(earned)) if earned else None


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _curve_rows(job: Job) -> Iterator[Row]:
    base = {"task": job.task, "hub": job.hub, "method": job.label, "seed": str(job.config.seed)}
    # A probe can leave too few steps for an evaluation.
    path = job.folder / "evaluations.npz"
    evaluated = np.load(path, allow_pickle=False) if path.exists() else {"timesteps": [], "results": []}
    for step, returns in zip(evaluated["timesteps"], evaluated["results"], strict=True):
        yield {**base, "kind": "evaluation", "step": str(int(step)), "return": f"{np.mean(returns):.2f}"}
    curve = runs.training_curve(job.folder)
    width = job.config.steps / CURVE_POINTS
    for point in range(CURVE_POINTS):
        inside = [value for step, value in curve if point * width < step <= (point + 1) * width]
        if inside:
            yield {**base, "kind": "training", "step": str(round((point + 1) * width)), "return": f"{np.mean(inside):.2f}"}


def _pathway_rows(job: Job) -> Iterator[Row]:
    base = {"task": job.task, "hub": job.hub, "method": job.label, "seed": str(job.config.seed)}
    for folder in sorted(job.folder.glob("tensorboard*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("pathway/weight/"):
                scalars = events.Scalars(tag)
                for scalar in scalars[:: max(len(scalars) // CURVE_POINTS, 1)]:
                    yield {**base, "step": str(scalar.step), "pathway": tag.rpartition("/")[2], "weight": f"{scalar.value:.4f}"}


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UnknownName(unknown(kind, name, known))


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
