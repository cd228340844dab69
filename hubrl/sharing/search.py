"""Search for pretrained agents of a task, by what Hugging Face's API says of them."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from hubrl.errors import BadFile
from hubrl.reading.hugging_face import explain, import_hub
from hubrl.reading.locations import HUGGING_FACE

READABLE = ("hubrl", "stable-baselines3", "sb3-contrib")
"""Libraries whose agents hubrl reads."""


class Candidate(NamedTuple):
    """A repository that may hold an agent of a task; its spaces are known once it is read."""

    location: str
    """`hf://owner/name`."""
    library: str
    tasks: str
    """Tags that name the task."""
    returns: str
    """Mean reward, as its author measured it; empty if unknown."""
    downloads: int
    licence: str
    gated: bool


def search_agents(task: str, *, limit: int = 20) -> list[Candidate]:
    """Repositories that may hold agents of a task, those of its version first, by their downloads.

    Args:
        task: Gymnasium id; its module, namespace and version are ignored in the search.
        limit: Greatest number of repositories.

    Raises:
        BadConfig: If huggingface_hub is not installed.
        BadFile: If the hub cannot be reached.
    """
    bare = task.rpartition(":")[2].rpartition("/")[2]
    stem = re.sub(r"(NoFrameskip)?-v\d+$", "", bare)
    api = import_hub("A search").HfApi(library_name="hubrl")
    try:
        found = list(
            api.list_models(
                search=stem,
                filter="reinforcement-learning",
                sort="downloads",
                cardData=True,
                limit=5 * limit,
            )
        )
    except Exception as error:  # huggingface_hub passes on those of whichever HTTP client it has
        raise BadFile(f"Hugging Face cannot be searched: {explain(error)}.") from error
    candidates = [_candidate(info, stem) for info in found]
    readable = [one for one in candidates if one.library in READABLE]
    return sorted(readable, key=lambda one: bare not in one.tasks.split(", "))[:limit]


def _candidate(info: Any, stem: str) -> Candidate:
    card: dict[str, Any] = {} if info.card_data is None else info.card_data.to_dict()
    tags: Iterable[str] = info.tags or ()
    return Candidate(
        f"{HUGGING_FACE}{info.id}",
        info.library_name or str(card.get("library_name", "")),
        ", ".join(tag for tag in tags if stem.lower() in tag.lower()),
        _reward(card),
        info.downloads or 0,
        str(card.get("license", "")),
        bool(info.gated),
    )


def _reward(card: dict[str, Any]) -> str:
    """The first mean reward of a card's `model-index`."""
    for model in card.get("model-index") or ():
        for result in model.get("results", ()):
            for metric in result.get("metrics", ()):
                if metric.get("type") == "mean_reward":
                    return str(metric.get("value", ""))
    return ""
