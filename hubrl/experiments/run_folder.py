"""The folder of a run, with its config and its hub read once."""

import re
import shutil
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from hubrl.errors import BadFile
from hubrl.experiments.config import RunConfig, load_hub, read_config
from hubrl.formats.files import lock_folder
from hubrl.hub import Hub

STATISTICS = "vecnormalize.pkl"
MODEL = "model.zip"

UNFINISHED = re.compile(
    r"\.evaluations\.npz"
    r"|\.(config\.yaml|model\.zip|vecnormalize\.pkl|trust\.json|result\.json|sources\.json|\d+)"
    r"\.\w+(\.old)?"
)
"""Names under which a run's files and checkpoints are written before they take their place."""

PATIENCE_S = 5.0
"""Seconds to wait for a process that trains the same run, and may be about to end."""


class Run:
    """The folder of a run, with its config and its hub read once.

    Raises:
        BadFile: If the folder is no run, or its config cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.yaml").exists():
            raise BadFile(f"{folder} is no run: it has no config.yaml.")
        self.folder = folder
        self.config: RunConfig = read_config(folder / "config.yaml")

    @cached_property
    def hub(self) -> Hub | None:
        """The sources of the run; None without a hub."""
        return load_hub(self.config)

    @property
    def tenth(self) -> int:
        """A tenth of the steps, the default distance of evaluations and checkpoints."""
        return max(self.config.steps // 10, 1)


def locked_run(folder: Path) -> AbstractContextManager[None]:
    """The folder of a run, for one process at a time.

    Raises:
        FolderInUse: If another process holds it for longer than it takes to end.
    """
    busy = f"{folder} is being trained by another process; wait for it, or start another run."
    return lock_folder(folder, busy, patience_s=PATIENCE_S)


def remove_leftovers(folder: Path, step: int) -> None:
    """Remove what a killed process wrote after its last checkpoint, which comes once more.

    Args:
        folder: The run's folder.
        step: Steps of the checkpoint; 0 without one.
    """
    for hidden in (*folder.glob(".*"), *folder.glob("checkpoints/.*")):
        if UNFINISHED.fullmatch(hidden.name):
            _remove(hidden)
    for monitor in folder.glob("monitor*"):
        if first_step(monitor) >= step:
            _remove(monitor)
    if step == 0:
        for record in (*folder.glob("tensorboard_*"), *folder.glob("evaluations.npz")):
            _remove(record)


def has_trained(folder: Path) -> bool:
    """Whether a run has a checkpoint or an evaluation, or an episode has ended."""
    if any((folder / name).exists() for name in ("checkpoints", "evaluations.npz")):
        return True
    header = 2
    return any(
        len(file.read_text(encoding="utf-8").splitlines()) > header
        for file in folder.glob("monitor*/*.monitor.csv")
    )


def first_step(monitor: Path) -> int:
    """The step at which a folder `monitor` (0) or `monitor-from-<step>` begins."""
    return int(monitor.name.rpartition("-")[2]) if "-" in monitor.name else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
