"""A comparison of methods on the task of one config: a study that is written from it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hubrl.errors import BadConfig
from hubrl.experiments.config import RunConfig, load_hub, read_config
from hubrl.experiments.study_config import ZERO_SHOT, read_study
from hubrl.formats.files import write_atomically
from hubrl.formats.schema import write_yaml
from hubrl.hub import Hub
from hubrl.methods import find
from hubrl.reading.locations import is_remote

STUDY = "study.yaml"
T = TypeVar("T")

OF_THE_CONFIG = ("method", "options", "seed", "hub", "agents")
"""Fields of the config that are not those of every run."""


def write_comparison(
    config_path: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    results: Path,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the study that compares methods on the task of a config.

    Methods and seeds of the comparison that the folder has already stay planned, and so do their
    results.

    Args:
        config_path: The config; its own options count for its own method alone.
        methods: Names of methods, `method:source` for one that learns from one source, or
            `zero-shot` for the sources untouched.
        seeds: Seeds of every method.
        results: Folder of the results; the study is written there.
        overrides: `field=value` over the config's fields.

    Returns:
        The study's YAML file.

    Raises:
        BadConfig: If the config names no sources.
        UnknownName: If a method is unknown.
    """
    config = read_config(config_path, list(overrides))
    if config.hub is None and not config.agents:
        raise BadConfig(f"{config_path} names no hub and no agents; there is nothing to compare.")
    results.mkdir(parents=True, exist_ok=True)
    hub = _hub_folder(config, results)
    name, path = config_path.stem, results / STUDY
    if path.exists():
        before = read_study(path)
        methods = _together(before.cases[name].methods if name in before.cases else (), methods)
        seeds = _together(before.seeds, seeds)
    study = {
        "seeds": list(seeds),
        "agents": {source: {"agent": str(hub / source)} for source in Hub.load(hub).names},
        "hubs": {"hub": Hub.load(hub).names},
        "methods": {one: {"set": _method(one, config)} for one in methods if one != ZERO_SHOT},
        "cases": {name: {"hub": "hub", "methods": list(methods), "set": _common(config)}},
    }
    write_atomically(path, write_yaml(study))
    return path


def _together(before: Iterable[T], now: Iterable[T]) -> list[T]:
    """Both without repetition, in their order."""
    return list(dict.fromkeys([*before, *now]))


def _common(config: RunConfig) -> dict[str, Any]:
    fields = config.model_dump(mode="json", exclude_unset=True)
    return {name: value for name, value in fields.items() if name not in OF_THE_CONFIG}


def _method(text: str, config: RunConfig) -> dict[str, Any]:
    name, _, source = text.partition(":")
    find(name)
    options = dict(config.options) if name == config.method else {}
    return {"method": name, "options": {**options, **({"source": source} if source else {})}}


def _hub_folder(config: RunConfig, results: Path) -> Path:
    """The folder of the config's hub; of a copy, where it names agents or a repository."""
    if config.hub is not None and not is_remote(config.hub):
        return Path(config.hub).resolve()
    hub, folder = load_hub(config.model_copy(update={"method": "hub-pathway"})), results / "hub"
    assert hub is not None
    hub.save(folder, overwrite=True)
    return folder.resolve()
