"""Search for a config's options and settings by Optuna, which ends with a config to train.

<out>/
    trials.log      Optuna's journal: the same command goes on with it, also in several processes
    best.yaml       the best config so far
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from hubrl.errors import BadConfig, NotFinite
from hubrl.experiments.config import RunConfig, parse_config, read_config
from hubrl.experiments.regular_evaluations import FILE as EVALUATIONS
from hubrl.experiments.run import start_run_from, train
from hubrl.experiments.search_space import search_space, with_values
from hubrl.formats.files import write_atomically
from hubrl.formats.schema import write_yaml
from hubrl.formats.search import Between, SearchSpace

JOURNAL, BEST = "trials.log", "best.yaml"

FIRST_UNPRUNED = 5
"""Trials that are trained to their end before others are compared with them."""


class Tuned(NamedTuple):
    """The state of a search."""

    config: Path
    """The best config so far."""
    trial: int
    value: float
    """Its mean return at the end of training, over the seeds."""
    first: float | None
    """That of the config as it was given; none if it was not trained to its end."""
    values: dict[str, Any]
    """What the best trial has in place of the given config's values."""
    completed: int
    pruned: int


def tune(
    config_path: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    only: tuple[str, ...] = (),
    trials: int = 30,
    seeds: int = 1,
    sampler_seed: int = 0,
    on_trial: Callable[[int], None] = lambda finished: None,
) -> Tuned:
    """Train a config with other options and settings until a number of trials is finished.

    The first trial is the config as it is. Values are drawn by Optuna's TPE. A trial is pruned
    where an evaluation in training is below the median of the others at the same step.

    Args:
        config_path: The config's YAML file.
        out: Folder of the search; one that is there is gone on with.
        overrides: `field=value` over the file's fields.
        only: What is searched (`options.hold`); all that has a search space by default.
        trials: Finished trials in all, of this call and of those before.
        seeds: Seeds that each trial is trained with, from the config's own upwards.
        sampler_seed: Seed of the sampler.
        on_trial: Called with the number of finished trials.

    Raises:
        BadConfig: If Optuna is not installed, nothing can be searched, the folder belongs to
            another search, or no trial was trained to its end.
    """
    optuna = _import_optuna()
    config = read_config(config_path, list(overrides))
    space = search_space(config, only)
    if not space:
        raise BadConfig(
            f"{config_path} has nothing to search: method {config.method!r} and algorithm "
            f"{config.algorithm!r} have no search space."
        )
    out.mkdir(parents=True, exist_ok=True)
    study = _open_study(optuna, out, config, seeds, sampler_seed)

    def objective(trial: Any) -> float:
        # The first trial is the config as it is.
        searched = space if trial.number else {}
        values = {name: _suggest(trial, name, one) for name, one in searched.items()}
        made = parse_config(with_values(config, values), f"trial {trial.number}")
        return _train_seeds(optuna, trial, made, out, seeds)

    def finished() -> int:
        done = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
        return len(study.get_trials(deepcopy=False, states=done))

    on_trial(finished())
    while finished() < trials:
        study.optimize(objective, n_trials=1)
        _write_best(optuna, study, config, out)
        on_trial(finished())
    return _write_best(optuna, study, config, out)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise BadConfig("A search needs optuna; install hubrl[tune].") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(optuna: Any, out: Path, config: RunConfig, seeds: int, sampler_seed: int) -> Any:
    """The study of a folder, new or gone on with."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    )
    study = optuna.create_study(
        study_name="hubrl",
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        # Trials before differ by their number, so that a search that goes on draws anew.
        sampler=optuna.samplers.TPESampler(seed=sampler_seed + _n_trials(optuna, storage)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_UNPRUNED),
    )
    plain = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    known = study.user_attrs.get("config")
    if known not in (None, digest):
        raise BadConfig(
            f"{out} holds the search of another config, or of this one before it was changed; "
            "choose another folder with --out."
        )
    # Means over one seed and over several are not compared: the greatest of many single ones would
    # win.
    if study.user_attrs.get("seeds", seeds) != seeds:
        raise BadConfig(
            f"{out} holds a search over {study.user_attrs['seeds']} seeds and {seeds} were given; "
            "give as many, or choose another folder with --out."
        )
    study.set_user_attr("config", digest)
    study.set_user_attr("seeds", seeds)
    return study


def _n_trials(optuna: Any, storage: Any) -> int:
    summaries = optuna.get_all_study_summaries(storage=storage)
    return sum(summary.n_trials for summary in summaries)


def _suggest(trial: Any, name: str, space: SearchSpace) -> Any:
    """A value of a search space, as Optuna draws it."""
    if not isinstance(space, Between):
        return trial.suggest_categorical(name, list(space.values))
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, space.low, space.high, log=space.log)


def _train_seeds(optuna: Any, trial: Any, config: RunConfig, out: Path, seeds: int) -> float:
    """Mean return at the end of a config's training, over seeds; evaluations are reported.

    Raises:
        TrialPruned: Optuna's, if an evaluation is below the others' median, or a network diverged.
    """
    returns: list[float] = []
    for offset in range(seeds):
        folder = out / f"trial_{trial.number}_{offset}"

        def report(step: int, value: float, offset: int = offset) -> None:
            trial.report(float(np.mean([*returns, value])), offset * config.steps + step)
            if trial.should_prune():
                raise optuna.TrialPruned

        shutil.rmtree(folder, ignore_errors=True)
        start_run_from(config.model_copy(update={"seed": config.seed + offset}), folder)
        try:
            watch = EvaluationReports(folder / EVALUATIONS, report)
            returns.append(train(folder, [watch])["eval_mean"])
        except (ValueError, NotFinite) as error:  # a network diverged
            raise optuna.TrialPruned from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return float(np.mean(returns))


class EvaluationReports(BaseCallback):
    """Reports of a run's evaluations, from the file that they are written to, a step later.

    Args:
        path: The file.
        report: Called with the step and the mean return of every evaluation.
    """

    def __init__(self, path: Path, report: Callable[[int, float], None]) -> None:
        super().__init__()
        self.path, self.report = path, report
        self._seen_ns = self._reported = 0

    def _on_step(self) -> bool:
        if not self.path.exists() or self.path.stat().st_mtime_ns == self._seen_ns:
            return True
        self._seen_ns = self.path.stat().st_mtime_ns
        with np.load(self.path, allow_pickle=False) as saved:
            steps, returns = saved["timesteps"], saved["results"].mean(axis=1)
        new = range(self._reported, len(steps))
        self._reported = len(steps)
        for index in new:
            self.report(int(steps[index]), float(returns[index]))
        return True


def _write_best(optuna: Any, study: Any, config: RunConfig, out: Path) -> Tuned:
    """Write the best config so far.

    Raises:
        BadConfig: If no trial was trained to its end.
    """
    states = optuna.trial.TrialState
    done = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
    pruned = len(study.get_trials(deepcopy=False, states=(states.PRUNED,)))
    if not done:
        raise BadConfig(f"No trial in {out} was trained to its end; run more of them.")
    best = max(done, key=lambda trial: trial.value)
    values = dict(best.params) if best.number else {}
    head = (
        f"# Trial {best.number}: mean return {best.value:.2f}; {len(done)} trials trained, "
        f"{pruned} pruned.\n"
    )
    write_atomically(out / BEST, head + write_yaml(with_values(config, values)))
    first = next((trial.value for trial in done if trial.number == 0), None)
    return Tuned(out / BEST, best.number, best.value, first, values, len(done), pruned)
