"""A study: methods on targets over seeds, from one YAML file; finished runs are not repeated.

runs/<study>/<task>/<hub>/<method>/<seed>-<digest>/   one training, see `hubrl.experiments.run`
results/<study>/*.csv             see `hubrl.experiments.study_tables`
results/<study>/table.md, *.png   see `hubrl.experiments.figures`
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

from hubrl.experiments.cluster import connected
from hubrl.experiments.finished_run import FinishedRun
from hubrl.experiments.router_controls import play_controls
from hubrl.experiments.run import start_run_from, train
from hubrl.experiments.seeds import EVALUATION_SEED
from hubrl.experiments.study_config import WITHOUT_TRAINING, check_known, read_study
from hubrl.experiments.study_plan import Job, plan
from hubrl.experiments.study_tables import (
    Row,
    RunRows,
    append_results,
    completed_keys,
    curve_rows,
    drop_outdated,
    pathway_rows,
    trained_row,
)
from hubrl.experiments.untrained import untrained_row, untrained_rows
from hubrl.experiments.worker_processes import run_in_processes
from hubrl.formats.files import lock_folder, writing

PATIENCE_S = 5.0
"""Seconds to wait for a study that may be about to end, as after a Ctrl-C."""


def run_study(
    path: Path,
    *,
    folder: Path,
    results: Path,
    agents: Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    cases: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    on_plan: Callable[[int, int], None] = lambda done, total: None,
    on_done: Callable[[Job, str | None], None] = lambda job, problem: None,
) -> list[Job]:
    """Run the missing runs in parallel; results are written after every run.

    An interrupted run goes on from its last checkpoint, and so does one whose process was killed.

    Args:
        path: The study's YAML file.
        folder: Folder of its runs.
        results: Folder of its results; runs with a row there are not repeated.
        agents: Folder with local copies of Hugging Face agents.
        jobs: Runs at a time; by default 2, or on a cluster as many as it has room for.
        ray: Address of a Ray cluster, or `auto`, instead of processes of this machine.
        cases: Names of the only cases to run; all by default.
        methods: Names of the only methods to run; all by default.
        seeds: The only seeds to run; all by default.
        on_plan: Called with the numbers of completed and of chosen runs.
        on_done: Called after every run, with the error if it failed.

    Returns:
        The runs that failed.

    Raises:
        UnknownName: If a chosen case, method or seed is not in the study.
        BadConfig: If the cluster cannot be used.
        FolderInUse: If another process runs the study.
        NotWritten: If results cannot be written.
    """
    study = read_study(path)
    with (
        _locked(path, folder),
        _locked(path, results),
        nullcontext() if ray is None else connected(ray) as cluster,
    ):
        planned = plan(path, folder, agents)
        check_known("case", cases, study.cases)
        check_known("method", methods, study.all_methods)
        check_known("seed", map(str, seeds), {str(job.config.seed) for job in planned})
        chosen = [
            job
            for job in planned
            if (not cases or job.case in cases)
            and (not methods or job.method in methods)
            and (not seeds or job.config.seed in seeds)
        ]
        done = completed_keys(results)
        missing = [job for job in chosen if not done.issuperset(job.keys)]
        on_plan(len(chosen) - len(missing), len(chosen))
        failed = []
        execute = run_in_processes if cluster is None else cluster.run
        with closing(execute(run_job, missing, jobs)) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, RunRows):
                    append_results(outcome, results, planned)
                    on_done(job, None)
                else:
                    failed.append(job)
                    drop_outdated(results, planned)
                    on_done(job, f"{type(outcome).__name__}: {outcome}")
        return failed


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    """Keep other processes from a study's folder, which is made if it is missing."""
    with writing("The study", folder):
        folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"Another process runs a study in {folder}; wait for it, or run {path} with --runs and "
        "--results of its own."
    )
    with lock_folder(folder, busy, patience_s=PATIENCE_S):
        yield


def run_job(job: Job) -> RunRows:
    """The rows of one run; a training goes on from its last checkpoint if it was interrupted."""
    if job.method in WITHOUT_TRAINING:
        return RunRows(untrained_rows(job))
    if not (job.folder / "config.yaml").exists():
        start_run_from(job.config, job.folder)
    if not (job.folder / "result.json").exists():
        train(job.folder)
    return RunRows(
        [trained_row(job), *_control_rows(job)], list(curve_rows(job)), list(pathway_rows(job))
    )


def _control_rows(job: Job) -> Iterator[Row]:
    """Episodes of the trained agent under each control."""
    if not job.controls:
        return
    run = FinishedRun(job.folder)
    seed = run.config.seed + EVALUATION_SEED
    with closing(run.env(seed=seed)) as env:
        played = play_controls(run.model(env), env, run.config.eval_episodes, seed)
    for control in job.controls:
        yield untrained_row(job, played[control], f"{job.label}:{control}")
