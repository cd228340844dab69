"""The Python modules of a study's tasks, which travel to the nodes of a cluster."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from hubrl.errors import BadConfig
from hubrl.formats.files import Files, read_folder, write_folder

MODULE_BYTES = 100 * 2**20
"""Greatest size of the modules together."""


def task_modules(tasks: Iterable[str]) -> Files:
    """The files of the modules that tasks name (`module:id`), but for installed packages.

    Of `envs.mujoco:id` the whole package `envs` travels; paths begin at its parent.

    Args:
        tasks: Names of the tasks.

    Raises:
        BadConfig: If they are too large to travel.
    """
    names = {task.rpartition(":")[0].partition(".")[0] for task in tasks}
    files: Files = {}
    for name in sorted(names - {"", "hubrl"}):
        spec = importlib.util.find_spec(name)
        for place in [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]:
            path = Path(place)
            if not {"site-packages", "dist-packages"} & {*path.parts} and path.exists():
                files |= read_folder(path, path.parent)
    size = sum(map(len, files.values()))
    if size > MODULE_BYTES:
        raise BadConfig(
            f"The modules of the tasks ({', '.join(sorted(names))}) have {size // 2**20} MiB, and "
            f"{MODULE_BYTES // 2**20} travel to the nodes at most; install them on every node."
        )
    return files


def import_from(folder: Path, modules: Files) -> None:
    """Write modules into a folder of this process's own, and import from there first."""
    write_folder(folder, modules)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
