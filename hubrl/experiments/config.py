"""The config of a run: one flat, frozen model, from YAML and from `--set`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, field_validator

from hubrl.errors import BadConfig, unknown
from hubrl.formats.cards import Preprocessing
from hubrl.formats.hub_spec import Precision
from hubrl.formats.schema import Schema, first_problem, parse_yaml, read_yaml
from hubrl.hub import Hub
from hubrl.methods import check_options, find
from hubrl.methods.registry import check_cached
from hubrl.policies.dqn import TeachingOptions
from hubrl.policies.on_policy.options import OutputOptions
from hubrl.reading.locations import located

Algorithm = Literal[
    "ppo",
    "a2c",
    "dqn",
    "sac",
    "td3",
    "ddpg",
    "qrdqn",
    "tqc",
    "trpo",
    "recurrent_ppo",
    "maskable_ppo",
]

Count = Annotated[int, Field(gt=0)]


class RunConfig(Schema):
    """One training, field by field as in its YAML file."""

    task: str
    """Gymnasium id; `module:id` where importing a module registers it."""
    task_kwargs: dict[str, Any] = {}
    """Keyword arguments of the task."""
    preprocessing: Preprocessing = "none"
    """`atari`: SB3's conventions and four frames, in C++ if possible; `atari-sb3`: in Python."""
    n_envs: Count = 1
    """Parallel environments."""
    normalize: bool = False
    """Whether observations and rewards go through VecNormalize."""
    algorithm: Algorithm = "ppo"
    """Name of the algorithm's package in SB3 or sb3-contrib."""
    algorithm_kwargs: dict[str, Any] = {}
    """Keyword arguments of the algorithm, as SB3 names them; `policy_kwargs` among them."""
    method: str = "hub-pathway"
    """Name of the transfer method (`hubrl methods`)."""
    options: dict[str, Any] = {}
    """Options of the method and, at the level of outputs, of the policy."""
    level: Literal["features", "outputs"] | None = None
    """Level at which sources are read; the best that the algorithm supports by default."""
    tuned: bool = False
    """Whether the sources are trained further."""
    source_lr: Annotated[float, Field(gt=0)] | None = None
    """Factor on the learning rate for tuned sources; the method's own by default."""
    cached: bool = False
    """Whether frozen sources' features are computed once a step and stored."""
    hub: str | None = None
    """Folder of a hub, or `hf://owner/name[@revision]`; relative paths start at the config's
    folder."""
    agents: tuple[str, ...] = ()
    """Agents' files or folders, or `hf://owner/name[/file][@revision]`, instead of a hub;
    `agent.zip,statistics.pkl` names a companion."""
    probe_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Largest share of the steps for a probe of the sources, counted among the steps."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the steps, after the probe, for the critic alone (PPO and A2C, outputs)."""
    steps: Count
    """Environment steps, summed over parallel environments."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything; equal seeds give equal results on a CPU."""
    eval_every: Count | None = None
    """Environment steps between evaluations; a tenth of `steps` by default."""
    eval_episodes: Count = 10
    """Episodes of an evaluation; actions are deterministic, in Atari games sampled."""
    checkpoint_every: Count | None = None
    """Environment steps between checkpoints, each of which begins new episodes; by default a tenth
    of `steps`, and at least 20 episodes in every environment."""
    threads: Count = 1
    """Threads of torch; one is fastest for small networks."""
    device: str = "auto"
    """Device, as SB3 names it."""
    precision: Precision = "float32"
    """Precision of NatureCNNs; `bfloat16` is faster on many processors (docs/guides/atari.md)."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        """Refuse a device that torch does not have."""
        try:
            torch.device("cpu" if device == "auto" else device)
        except RuntimeError:
            raise ValueError(
                f"{device!r} is no device of torch; expected auto, cpu, cuda or the like"
            ) from None
        return device

    @property
    def needs_hub(self) -> bool:
        """Whether the method learns from sources, or needs their size."""
        return self.method != "scratch" or bool(self.options.get("hub_sized"))


def read_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """A config from YAML, with overrides applied and paths made absolute.

    Args:
        path: The YAML file.
        overrides: `field=value`, or `options.name=value` for a field that is a mapping; values are
            YAML.

    Raises:
        BadFile: If the file cannot be read.
        BadConfig: If a field is unknown or its value is invalid.
        UnknownName: If the method or one of its options is unknown.
    """
    fields = read_yaml(path)
    if not isinstance(fields, dict):
        raise BadConfig(f"{path} holds {type(fields).__name__}, expected fields and values.")
    for override in overrides or []:
        assign(fields, override)
    config = parse_config(fields, str(path))
    folder = path.parent.resolve()
    hub = None if config.hub is None else located(config.hub, folder)
    agents = tuple(located(agent, folder) for agent in config.agents)
    return config.model_copy(update={"hub": hub, "agents": agents})


def load_hub(config: RunConfig) -> Hub | None:
    """The hub of a config; None if its method needs none.

    Raises:
        BadFile: If the hub or an agent cannot be read.
    """
    if not config.needs_hub:
        return None
    if config.hub is not None:
        return Hub.load(config.hub)
    return Hub.from_agents(config.agents)


def parse_config(fields: dict[str, Any], where: str) -> RunConfig:
    """A config from plain data.

    Args:
        fields: The fields and their values.
        where: Their place, as the subject of error messages.

    Raises:
        BadConfig: If a field is unknown or its value is invalid.
        UnknownName: If the method or one of its options is unknown.
    """
    for field in fields:
        if field not in RunConfig.model_fields:
            raise BadConfig(f"{where}: {unknown('field', str(field), RunConfig.model_fields)}")
    try:
        config = RunConfig.model_validate(fields)
    except ValidationError as error:
        raise BadConfig(f"{where}: {first_problem(error)}.") from error
    find(config.method)
    check_options(
        config.method,
        config.options,
        also={**OutputOptions.model_fields, **TeachingOptions.model_fields},
    )
    if config.needs_hub and config.hub is None and not config.agents:
        raise BadConfig(
            f"{where}: method {config.method!r} learns from sources; name a hub or agents."
        )
    if config.cached:
        check_cached(config.method, tuned=config.tuned)
    if config.hub is not None and config.agents:
        raise BadConfig(f"{where}: both a hub and agents are named; name one of them.")
    return config


def assign(fields: dict[str, Any], override: str) -> None:
    """Set one `field=value`, or `field.inner=value`, in place; the value is YAML.

    Raises:
        BadConfig: If the override has another form.
    """
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise BadConfig(f"{override!r} was given; expected name=value.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadConfig(
            f"{override!r} was given; expected a value in YAML behind the equals sign."
        ) from error
    *path, last = name.split(".")
    for part in path:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise BadConfig(
                f"{override!r} was given, and {part!r} is no mapping; set the whole field."
            )
    fields[last] = value
