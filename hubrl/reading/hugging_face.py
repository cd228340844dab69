"""Repositories of Hugging Face: downloaded once, checked, and read as folders."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubrl.errors import BadConfig, BadFile
from hubrl.reading.locations import Location, Repository, is_remote, parse_repository

WANTED = ("*.zip", "*.pkl", "*.yaml", "*.yml", "*.safetensors", "*.json")

SHA256 = re.compile(r"[0-9a-f]{64}")


def import_hub(what: object) -> Any:
    """The package huggingface_hub.

    Args:
        what: What needs it, as the subject of the message.

    Raises:
        BadConfig: If it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise BadConfig(f"{what} needs huggingface_hub; install hubrl[huggingface].") from error
    return huggingface_hub


def fetch(location: Location, patterns: tuple[str, ...] = WANTED) -> Path:
    """The local path of a repository, or of a file or folder in it, downloaded if needed.

    Args:
        location: `hf://owner/name[/file][@revision]`.
        patterns: Patterns of the files to download.

    Raises:
        BadConfig: If the spelling is invalid, or huggingface_hub is not installed.
        BadFile: If it cannot be downloaded, in whole, or a file is not what the hub has.
    """
    repository = parse_repository(location)
    hub = import_hub(repository)
    try:
        root = hub.snapshot_download(
            repository.name, revision=repository.revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # huggingface_hub passes on those of whichever HTTP client it has
        raise BadFile(f"{repository} cannot be fetched: {explain(error)}.") from error
    folder = Path(root)
    check_digests(folder, repository)
    path = folder / repository.file
    if not path.exists():
        there = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
        raise BadFile(
            f"{repository} is not in the repository; it has {', '.join(there[:10]) or 'no agent'}."
        )
    return path


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """The local path of a location, downloaded if needed; messages of `BadFile` name the location.

    Raises:
        BadConfig: If the spelling is invalid, or huggingface_hub is not installed.
        BadFile: If it cannot be downloaded, or what reads it raises so.
    """
    if not is_remote(location):
        yield Path(location)
        return
    path = fetch(location)
    try:
        yield path
    except BadFile as error:
        # The user knows the repository, not where its copy lies.
        named = str(error).replace(str(path), str(parse_repository(location)))
        raise BadFile(named) from error


def check_digests(folder: Path, repository: Repository) -> None:
    """Compare large files with the sha256 by which the hub and its cache name them.

    Raises:
        BadFile: If one differs.
    """
    for path in folder.rglob("*"):
        blob = path.resolve()
        if not SHA256.fullmatch(blob.name) or not blob.is_file():
            continue
        with blob.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if _HAS_DIGEST else _digest(file)
        if digest.hexdigest() != blob.name:
            raise BadFile(
                f"{repository} is damaged: {path.name} has another sha256 than on the hub; remove "
                f"{blob} and run again."
            )


_HAS_DIGEST = hasattr(hashlib, "file_digest")
"""Whether Python is 3.11 or newer."""


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest


def explain(error: Exception) -> str:
    """The reason of a failed request, and what to do, as a phrase."""
    for name, phrase in REASONS:
        if name in {kind.__name__ for kind in type(error).__mro__}:
            return phrase
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return NO_ACCESS
    return f"{type(error).__name__}, {' '.join(str(error).split())[:160]}"


NO_ACCESS = (
    "access was denied; log in with `hf auth login`, or give HF_TOKEN a token that may do this"
)

REASONS = (
    (
        "GatedRepoError",
        "it is gated; ask for access on its page, then log in with `hf auth login`",
    ),
    (
        "RepositoryNotFoundError",
        "there is no such repository, or it is private; check the name, or log in with "
        "`hf auth login`",
    ),
    ("RevisionNotFoundError", "it has no such revision; check what follows the @"),
    (
        "IncompleteSnapshotError",
        "an earlier download was interrupted and the hub cannot be reached now; run again online",
    ),
    (
        "LocalEntryNotFoundError",
        "it is not in the local cache and the hub cannot be reached; run again online",
    ),
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set; unset it"),
    ("LocalTokenNotFoundError", NO_ACCESS),
    ("ConnectError", "the hub cannot be reached; check the connection"),
    ("ConnectionError", "the hub cannot be reached; check the connection"),
    ("TimeoutException", "the hub did not answer in time; run again"),
)
"""Phrases by the name of an error's class, or of one that it derives from; the first one counts."""
