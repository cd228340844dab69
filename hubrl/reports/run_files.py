"""The JSON files of a finished run, and the sentence where one is damaged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hubrl.errors import BadFile
from hubrl.experiments.checkpoints import BROKEN
from hubrl.formats.schema import first_problem

DAMAGED = "{} is damaged ({})."

Shape = TypeVar("Shape")


class Result(BaseModel):
    """`result.json`, with the fields that a report needs; the others are shown as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    steps: int
    wall_s: float
    steps_per_s: float
    eval_mean: float
    eval_std: float
    eval_episodes: int


class ArmRecord(BaseModel):
    """An arm in `trust.json`."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["kept", "dropped", "deferred", "in doubt", "set aside"] | None
    returns: list[float]
    evaluates: bool


class Trust(BaseModel):
    """`trust.json`; empty in runs that are older than it."""

    model_config = ConfigDict(frozen=True)

    decisions: list[tuple[int, str]] = []
    arms: dict[str, ArmRecord] = {}


Levels = dict[str, list[float]]
"""`sources.json`: returns of the sources untouched."""

Versions = dict[str, str | None]
"""`versions.json`."""


def read_json(path: Path, shape: type[Shape] | Any, missing: Shape) -> Shape:
    """A JSON file of a run.

    Args:
        path: The file.
        shape: What it holds, as pydantic reads it.
        missing: Returned where there is no file.

    Raises:
        BadFile: If it holds anything else.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(DAMAGED.format(path, error)) from error
    try:
        read: Shape = TypeAdapter(shape).validate_python(plain)
    except ValidationError as error:
        raise BadFile(DAMAGED.format(path, first_problem(error)[:300])) from error
    return read


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a damaged file into a sentence.

    Raises:
        BadFile: If it is damaged.
    """
    try:
        yield
    except BROKEN as error:
        raise BadFile(DAMAGED.format(path, " ".join(str(error).split())[:300])) from error
