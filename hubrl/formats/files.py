"""Files and folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubrl.errors import OutputExists


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    raw = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes its place only when it was filled without an error.

    Args:
        path: Where it will be.
        overwrite: Whether it may replace a folder that is there.

    Raises:
        OutputExists: If something is there and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists; choose another name, remove it, or allow overwriting.")
    path.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield making
        making.chmod(0o755)
        old = making.with_name(f"{making.name}.old")
        if path.exists():
            path.rename(old)
        making.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
