"""The files of a hub's folder, and those of others in it."""

import shutil
from pathlib import Path

from hubrl.errors import OutputExists
from hubrl.formats.files import is_there
from hubrl.formats.schema import read_yaml

HUB_FILE = "hub.yaml"


def foreign_files(folder: Path) -> list[Path]:
    """Files and folders in a hub's folder that are not the hub's; everything in another folder."""
    own = {HUB_FILE}
    if is_there(folder / HUB_FILE):
        plain = read_yaml(folder / HUB_FILE)
        listed = plain.get("sources", []) if isinstance(plain, dict) else []
        own |= {f"{name}{suffix}" for name in listed for suffix in (".yaml", ".safetensors")}
    return [path for path in sorted(folder.iterdir()) if path.name not in own]


def check_replaceable(folder: Path, kinds: tuple[str, ...], what: str) -> None:
    """Refuse to replace a folder that holds other things.

    Args:
        folder: The folder, which exists.
        kinds: Patterns, of which a file in it has to fit one.
        what: What it is expected to hold.

    Raises:
        OutputExists: If it is none.
    """
    if not folder.is_dir() or not any(path for kind in kinds for path in folder.glob(kind)):
        raise OutputExists(
            f"{folder} exists and is no {what}, so it is not replaced; choose another name, or "
            "remove it."
        )


def copy_missing(files: list[Path], folder: Path) -> None:
    """Copy files and folders into a folder, but for names that are there."""
    for path in files:
        if path.is_dir() and not path.is_symlink():
            (folder / path.name).mkdir(exist_ok=True)
            copy_missing(sorted(path.iterdir()), folder / path.name)
        elif not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name, follow_symlinks=False)
