"""Files and folders: read with limits, written whole or not at all."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubrl.errors import BadFile, OutputExists

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of reading; without O_NONBLOCK opening a FIFO waits for its writer."""


def read_file(path: Path, most: int, what: str = "file") -> bytes:
    """The content of a regular file.

    Args:
        path: The file; a link to a regular file is followed.
        most: Greatest size in bytes.
        what: Noun for the file in messages.

    Raises:
        BadFile: If there is none, it cannot be read, it is a device, a FIFO or a folder, or it is
            greater.
    """
    try:
        handle = os.open(path, _READ)
    except FileNotFoundError as error:
        raise BadFile(f"There is no {what} {path}.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadFile(f"There is no {what} {str(path)[:200]!r} ({reason}).") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise BadFile(
                f"{path} is no regular file; expected one, not a folder, a device or a pipe."
            )
        if found.st_size > most:
            raise BadFile(
                f"{path} has {found.st_size} bytes, {most} are allowed; widen hubrl.Limits if "
                "it is trusted."
            )
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}).") from error
    finally:
        os.close(handle)


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Whether a file (or a folder) of this name exists; no for names that cannot be."""
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):
        return False


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
def new_folder(
    path: Path, *, overwrite: bool = False, remedy: str = "choose another name, or remove it"
) -> Iterator[Path]:
    """A folder to fill, which takes its place only when it was filled without an error.

    Args:
        path: Where it will be.
        overwrite: Whether it may replace a folder that is there.
        remedy: What the user may do where it exists, for the message.

    Raises:
        OutputExists: If something is there and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists; {remedy}.")
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
