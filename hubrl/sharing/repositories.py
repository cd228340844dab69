"""Folders to and from repositories of Hugging Face."""

import shutil
from pathlib import Path

from hubrl.errors import BadFile
from hubrl.formats.files import is_taken, new_folder
from hubrl.formats.hub_files import check_replaceable, copy_missing, foreign_files
from hubrl.reading.hugging_face import WANTED, explain, fetch, import_hub
from hubrl.reading.locations import HUGGING_FACE, Location, parse_repository_name

SHARED = ("*.safetensors", "*.yaml", "*.md", "*.png", "*.mp4")
"""Patterns of the files that are pushed; pickles, and zips that hold them, are not among them."""

OWNED = ("*.safetensors", "*.yaml")
"""Patterns of the files that a push removes where the folder no longer has them."""


def push_folder(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Write a folder's cards, weights and pictures to a repository, which is made if needed.

    Cards and weights that are in the repository and not in the folder are removed, in the same
    commit.

    Args:
        folder: The folder.
        repository: `owner/name`.
        private: Whether a repository that is made is private.
        message: Message of the commit.
        token: Access token; by default the one that `hf auth login` stored.

    Returns:
        Location of the commit, `hf://owner/name@commit`.

    Raises:
        BadConfig: If the repository is misspelled, or huggingface_hub is not installed.
        BadFile: If it cannot be written to.
    """
    name = parse_repository_name(repository)
    api = import_hub(f"{HUGGING_FACE}{name}").HfApi(token=token, library_name="hubrl")
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(SHARED),
            delete_patterns=list(OWNED),
            commit_message=message or "Push by hubrl",
        )
    except Exception as error:  # huggingface_hub passes on those of whichever HTTP client it has
        raise BadFile(f"{HUGGING_FACE}{name} cannot be written to: {explain(error)}.") from error
    return f"{HUGGING_FACE}{name}@{commit.oid}"


def pull_folder(location: Location, folder: Path, *, overwrite: bool = False) -> None:
    """Copy a repository, or a folder of it, to a folder of one's own.

    Args:
        location: `hf://owner/name[/folder][@revision]`.
        folder: The folder to make.
        overwrite: Whether it may replace an existing hub or agent; other files in its folder stay.

    Raises:
        BadConfig: If the location is misspelled, or huggingface_hub is not installed.
        BadFile: If it cannot be downloaded.
        OutputExists: If the folder exists and may not be replaced, or holds no hub and no agent.
    """
    source = fetch(location, (*WANTED, *SHARED))
    folder, foreign = folder.resolve(), []
    if overwrite and is_taken(folder):
        if not folder.is_dir() or any(folder.iterdir()):
            check_replaceable(folder, ("*.zip", "*.safetensors"), "hub or agent")
        foreign = foreign_files(folder)
    with new_folder(folder, overwrite=overwrite) as making:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                copy = making / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)  # the cache holds links
        copy_missing(foreign, making)
