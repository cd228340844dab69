"""Agents on the Hugging Face hub: a repository is downloaded once and read as a folder."""

from pathlib import Path

from hubrl.errors import BadConfig, BadFile

HUGGING_FACE = "hf://"

WANTED = ("*.zip", "*.pkl", "*.yaml", "*.yml", "*.safetensors", "*.json")


def fetch(repository: str) -> Path:
    """The local folder of a Hugging Face repository, downloaded if it is not in the cache.

    Args:
        repository: `hf://owner/name` or `hf://owner/name@revision`.

    Raises:
        BadConfig: If the name is invalid, or huggingface_hub is not installed.
        BadFile: If it cannot be downloaded.
    """
    name, _, revision = repository.removeprefix(HUGGING_FACE).partition("@")
    if name.count("/") != 1:
        raise BadConfig(f"{repository!r} was given; expected hf://owner/name.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadConfig(
            f"{repository} needs huggingface_hub; install hubrl[huggingface]."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{repository} cannot be fetched ({' '.join(str(error).split())[:160]})."
        ) from error
