"""A training and its folder: everything needed to repeat, watch, resume and evaluate it.

runs/<name>_<k>/
    config.yaml         resolved; `hubrl train <run>/config.yaml` repeats the run
    hub/                its sources
    command.txt         the command line
    versions.json       of Python and packages, and the git commit of the working directory
    tensorboard/        TensorBoard's events
    monitor/            SB3's Monitor, one CSV an environment
    monitor-from-<k>/   the same, since the checkpoint at step k
    evaluations.npz     as SB3's EvalCallback writes it
    checkpoints/        the last two, one of them at the end
    model.zip           the agent, and vecnormalize.pkl beside it
    trust.json          decisions about trust, and what every arm earned
    result.json         returns and times; a run with this file is finished
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from hubrl.errors import BadConfig, OutputExists
from hubrl.experiments.checkpoints import keep_latest
from hubrl.experiments.config import RunConfig, load_hub, read_config
from hubrl.experiments.leg import Handed, Leg
from hubrl.experiments.run_folder import Run, locked_run, remove_leftovers
from hubrl.experiments.run_record import write_run_folder
from hubrl.formats.files import writing
from hubrl.nn.devices import check_device


def start_run(
    config_path: Path, overrides: Sequence[str], folder: Path, name: str | None = None
) -> Path:
    """Make the folder of a new run from a config; nothing is trained yet.

    Args:
        config_path: The YAML file.
        overrides: `field=value` over the file's fields.
        folder: Folder of all runs.
        name: The run's name; the config's with a number by default.

    Raises:
        BadConfig: If the config or the name is invalid.
        BadFile: If the config, its hub or an agent cannot be read.
        OutputExists: If a run of the name exists.
    """
    if name is not None and Path(name).name != name:
        raise BadConfig(
            f"Run name {name!r} was given; expected a bare name, with its folder given by --runs."
        )
    config = read_config(config_path, list(overrides))
    repeats = config_path.stem == "config"
    stem = config_path.resolve().parent.name.rsplit("_", 1)[0] if repeats else config_path.stem
    while True:
        run = folder / (name or _numbered(folder, stem))
        try:
            start_run_from(config, run)
        except OutputExists:
            if name is not None:
                raise
            continue  # another process took the number meanwhile
        return run


def start_run_from(config: RunConfig, folder: Path) -> None:
    """Make the folder of a new run; nothing is trained yet.

    Raises:
        BadFile: If its hub or an agent cannot be read.
        OutputExists: If the folder exists.
    """
    write_run_folder(folder, config, load_hub(config))


def _numbered(folder: Path, stem: str) -> str:
    numbers = [path.name.rsplit("_", 1)[1] for path in folder.glob(f"{stem}_*")]
    return f"{stem}_{max((int(number) for number in numbers if number.isdigit()), default=0) + 1}"


def train(
    folder: Path, callbacks: Sequence[BaseCallback] = (), *, verbose: int = 0
) -> dict[str, Any]:
    """Train a run, from its last checkpoint if it was interrupted.

    A training is made of legs between checkpoints. Each begins with new environments, a new model
    in the checkpoint's state and a seed that follows from the step, interrupted or not, so that
    both give the same agent.

    Args:
        folder: The run's folder.
        callbacks: Callbacks beside the run's own; they stay the same over all legs.
        verbose: 1 for SB3's table.

    Returns:
        The content of `result.json`.

    Raises:
        OutputExists: If the run is finished.
        BadConfig: If the task or the algorithm cannot be built.
        BadFile: If the folder is no run, or its checkpoint is damaged.
        FolderInUse: If another process trains the run.
        NotWritten: If its files cannot be written.
    """
    legs = train_legs(folder, callbacks, verbose=verbose)
    while True:
        try:
            next(legs)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result


def train_legs(
    folder: Path, callbacks: Sequence[BaseCallback] = (), *, verbose: int = 0
) -> Generator[int, None, dict[str, Any]]:
    """`train`, one leg at a time: yields the steps of each checkpoint, and returns the result."""
    run = Run(folder)
    check_device(run.config.device)
    left = f"its last checkpoint is whole: with room and rights `hubrl train {folder}` goes on"
    with locked_run(folder):
        if (folder / "result.json").exists():
            again = (
                f"`hubrl train {folder / 'config.yaml'}` repeats it, "
                f"`hubrl evaluate {folder}` plays it"
            )
            raise OutputExists(f"{folder} is finished; {again}.")
        torch.set_num_threads(run.config.threads)
        with writing("The records of the run", folder, left, inside=folder):
            return (yield from _train_legs(run, callbacks, verbose))


def _train_legs(
    run: Run, callbacks: Sequence[BaseCallback], verbose: int
) -> Generator[int, None, dict[str, Any]]:
    handed, saved = Handed(), keep_latest(run.folder / "checkpoints")
    remove_leftovers(run.folder, int(saved[-1].name) if saved else 0)
    while True:
        leg = Leg(run, handed)
        result = leg.train(callbacks, verbose)
        if result is not None:
            return result
        handed = leg.hand_over()
        yield leg.model.num_timesteps
