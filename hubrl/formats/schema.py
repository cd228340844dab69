"""The base model of everything that is written to YAML or JSON, and YAML itself."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hubrl.errors import BadFile
from hubrl.formats.files import read_file
from hubrl.formats.limits import DEFAULT_LIMITS, Limits


class Schema(BaseModel):
    """Base of all written models: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_dict(self) -> dict[str, Any]:
        """This model as plain data for YAML and JSON: defaults left out, but never the format."""
        version = {"format": dict(self)["format"]} if "format" in type(self).model_fields else {}
        return {**version, **self.model_dump(mode="json", exclude_defaults=True)}


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader, in C where libyaml is installed."""


class _Loader(_SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, with `1e5` and `3e-4` as numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)

# PyYAML's constructors pass on every error of Python on the values of a file.
_YAML_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    yaml.YAMLError,
)  # fmt: skip


def read_yaml(path: Path, limits: Limits = DEFAULT_LIMITS) -> object:
    """Plain data from a YAML file.

    Raises:
        BadFile: If there is no such file, it is not YAML, or it exceeds a limit.
    """
    raw = read_file(path, limits.yaml_bytes)
    try:
        return parse_yaml(raw.decode("utf-8"), limits)
    except _YAML_ERRORS as error:
        raise BadFile(
            f"{path} cannot be read as YAML ({' '.join(str(error).split())[:160]})."
        ) from error


def parse_yaml(text: str, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: If the text is not YAML, has aliases, or exceeds a limit.
    """
    _check_events(text, limits)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check_events(text: str, limits: Limits) -> None:
    """Refuse aliases and nests before anything is built of them."""
    aliases = depth = nodes = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        if aliases > limits.yaml_aliases:
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > limits.depth:
            raise yaml.YAMLError(f"it is nested more than {limits.depth} deep")
        if nodes > limits.yaml_nodes:
            raise yaml.YAMLError(f"it has more than {limits.yaml_nodes} keys and values")


def parse_json(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Plain data from JSON.

    Raises:
        ValueError: If it is not JSON in UTF-8, or exceeds a limit.
        RecursionError: If it is nested a thousand deep.
    """
    if len(raw) > limits.json_bytes:
        raise ValueError(f"its JSON has {len(raw)} bytes, {limits.json_bytes} are allowed")
    # Of bytes json would guess the encoding, and import its codec.
    data = json.loads(raw.decode("utf-8"))
    level: list[Any] = [data]
    for _ in range(limits.depth):
        level = [
            part for value in level if isinstance(value, dict | list) for part in _parts(value)
        ]
        if not level:
            return data
    raise ValueError(f"its JSON is nested more than {limits.depth} deep")


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def write_yaml(plain: dict[str, Any]) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's errors, in one phrase."""
    problem = error.errors()[0]
    # pydantic names the branch of a union behind the field; users know fields, items and keys.
    parts = [
        str(part)
        for part in problem["loc"]
        if not str(part).startswith(("constrained-", "literal["))
    ]
    where = ".".join(parts)[:200]
    reason = problem["msg"].removeprefix("Value error, ")[:300]
    return f"{where}: {reason}" if where else reason
