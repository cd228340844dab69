"""Search spaces, which stand in the annotation of the option that `hubrl tune` searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args


@dataclass(frozen=True)
class Between:
    """Numbers of a range, both ends included; whole numbers if both ends are."""

    low: float
    high: float
    log: bool = False
    """Whether to search on a logarithmic scale."""


@dataclass(frozen=True)
class OneOf:
    """Choices."""

    values: tuple[Any, ...]


SearchSpace = Between | OneOf


def find_spaces(annotations: Mapping[str, Any]) -> dict[str, SearchSpace]:
    """Search spaces of the options that have one.

    Args:
        annotations: Annotations by option, with what stands in `Annotated`.
    """
    found = {}
    for name, annotation in annotations.items():
        spaces = [part for part in get_args(annotation)[1:] if isinstance(part, Between | OneOf)]
        if spaces:
            found[name] = spaces[0]
    return found
