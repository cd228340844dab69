"""Files and folders: read with limits, written whole or not at all."""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubrl.errors import BadFile, FolderInUse, NotWritten, OutputExists

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Files = dict[str, bytes]
"""Contents of files by their paths in a folder, with slashes."""

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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors of a drive, whatever was being written."""


@contextmanager
def writing(
    what: str,
    path: Path,
    then: str = "what was there before is unchanged",
    *,
    inside: Path | None = None,
) -> Iterator[None]:
    """Turn the system's refusal to write into a sentence.

    Args:
        what: What is written, as the subject of the sentence.
        path: Where to.
        then: What is left.
        inside: Only errors of a drive and of files in this folder count, where others' code runs.

    Raises:
        NotWritten: If the system refuses: a full disk, missing rights, a file in place of a folder.
    """
    try:
        yield
    except OSError as error:
        if inside is not None and not _concerns(error, inside):
            raise
        reason = error.strerror or error
        raise NotWritten(f"{what} could not be written to {path} ({reason}); {then}.") from error


def _concerns(error: OSError, folder: Path) -> bool:
    if not isinstance(error.filename, str):
        return error.errno in FULL
    named = Path(error.filename).absolute()
    return error.errno in FULL or named.is_relative_to(folder.absolute())


def write_atomically(path: Path, content: bytes | str, what: str | None = None) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part.

    Args:
        path: The file; its folder is made if necessary.
        content: The new content.
        what: What is written, as the subject of a message; the file's name by default.

    Raises:
        NotWritten: If the system refuses.
    """
    raw = content.encode() if isinstance(content, str) else content
    with writing(what or path.name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_together(files: dict[Path, bytes], what: str) -> None:
    """Replace files that belong together: all are written before the first takes its place.

    Args:
        files: The new content of each.
        what: What is written, as the subject of a message.

    Raises:
        NotWritten: If the system refuses.
    """
    made: dict[Path, Path] = {}
    first = next(iter(files))
    with writing(what, first):
        try:
            for path, content in files.items():
                made[path] = path.with_name(f".{path.name}.{os.getpid()}")
                made[path].write_bytes(content)
            for path, unfinished in made.items():
                unfinished.replace(path)
        finally:
            for unfinished in made.values():
                unfinished.unlink(missing_ok=True)


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder and those below it, in order; without hidden ones, compiled Python."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [path.relative_to(folder).parts for path in found]
    return [
        path
        for path, names in zip(found, parts, strict=True)
        if "__pycache__" not in names and not any(name.startswith(".") for name in names)
    ]


def read_folder(place: Path, start: Path) -> Files:
    """The visible files of a folder, or one file, by their paths from a start."""
    paths = visible_files(place) if place.is_dir() else [place]
    return {path.relative_to(start).as_posix(): path.read_bytes() for path in paths}


def write_folder(folder: Path, files: Files) -> None:
    """Write files into a folder, which is made if it is missing.

    Raises:
        OSError: If the system refuses; files before stay.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check_writable(folder: Path, what: str) -> None:
    """Refuse a folder in which nothing can be written, before any work; it is made if missing.

    Args:
        folder: The folder.
        what: What will be written, as the subject of a message.

    Raises:
        NotWritten: If the system refuses.
    """
    with writing(what, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def new_folder(
    path: Path,
    *,
    overwrite: bool = False,
    what: str | None = None,
    remedy: str = "choose another name, or remove it",
) -> Iterator[Path]:
    """A folder to fill, which takes its place only when it was filled without an error.

    Args:
        path: Where it will be.
        overwrite: Whether it may replace a folder that is there.
        what: What is written, as the subject of a message; the folder's name by default.
        remedy: What the user may do where it exists, for the message.

    Raises:
        OutputExists: If something is there and may not be replaced.
        NotWritten: If the system refuses.
    """
    if is_taken(path) and not overwrite:
        raise OutputExists(TAKEN.format(path, remedy))
    with writing(what or path.name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield making
            making.chmod(0o755)
            try:
                _take_place(making, path, overwrite=overwrite)
            except FileExistsError as error:  # made by another process meanwhile
                raise OutputExists(TAKEN.format(path, remedy)) from error
        except NotWritten as error:  # of a folder in this one, under the name that is to be
            shutil.rmtree(making, ignore_errors=True)
            raise NotWritten(str(error).replace(str(making), str(path))) from error
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise


TAKEN = "{} exists; {}."


def _take_place(making: Path, path: Path, *, overwrite: bool) -> None:
    """Move a folder to where it belongs; the one that was there comes back if that fails.

    Raises:
        FileExistsError: If something is there that may not be replaced.
    """
    old = making.with_name(f"{making.name}.old")
    replaces = overwrite and path.exists()
    if replaces:
        path.rename(old)
    try:
        making.rename(path)
    except OSError as error:
        if replaces:
            old.rename(path)
        elif error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(path) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_taken(path: Path) -> bool:
    """Whether something of this name exists; no for names that cannot be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@contextmanager
def lock_folder(folder: Path, busy: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Keep other processes that lock the same folder away; ends with the process at the latest.

    Where the system has no locks (Windows, some network drives) nothing is kept away.

    Args:
        folder: The folder, which exists.
        busy: The sentence for another process that holds it.
        patience_s: Seconds to wait for that to end.

    Raises:
        FolderInUse: If another process holds it.
    """
    handle = _open_folder(folder)
    try:
        _wait_for(handle, busy, time.monotonic() + patience_s)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _open_folder(folder: Path) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        return os.open(folder, os.O_RDONLY)
    return None


def _wait_for(handle: int | None, busy: str, until: float) -> None:
    while handle is not None and fcntl is not None:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise FolderInUse(busy) from error
            time.sleep(0.05)
        except OSError:
            return None  # a drive without locks
    return None
