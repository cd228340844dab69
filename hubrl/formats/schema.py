"""The base model of everything that is written to YAML or JSON, and YAML itself."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hubrl.errors import BadFile


class Schema(BaseModel):
    """Base of all written models: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_dict(self) -> dict[str, Any]:
        """This model as data that YAML and JSON hold: defaults left out, but never the format."""
        version = {"format": dict(self)["format"]} if "format" in type(self).model_fields else {}
        return {**version, **self.model_dump(mode="json", exclude_defaults=True)}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with `1e5` and `3e-4` as numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> object:
    """Plain data from a YAML file.

    Raises:
        BadFile: If there is no such file or it is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadFile(f"There is no file {path}.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BadFile(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:160]}).") from error


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: If the text is not YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_yaml(plain: dict[str, Any]) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one phrase."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason
