"""What a training is: one flat, frozen config, from YAML and from `--set`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, field_validator

from hubrl.errors import BadConfig, unknown
from hubrl.formats.cards import Preprocessing
from hubrl.formats.hub_spec import Precision
from hubrl.formats.schema import Schema, first_problem, parse_yaml, read_yaml
from hubrl.methods import check_options, find
from hubrl.methods.base import check_cached
from hubrl.outputs import Outputs
from hubrl.q_policies import Teaching
from hubrl.reading import HUGGING_FACE

Algorithm = Literal["ppo", "a2c", "dqn", "sac", "td3", "ddpg", "qrdqn", "tqc", "trpo", "recurrent_ppo", "maskable_ppo"]

Whole = Annotated[int, Field(gt=0)]


class RunConfig(Schema):
    """One training: its YAML file, field by field."""

    task: str
    """Gymnasium id; `module:id` where importing a module registers it."""
    task_kwargs: dict[str, Any] = {}
    """Keyword arguments of the task."""
    preprocessing: Preprocessing = "none"
    """`atari`: SB3's conventions and four stacked frames, in ale-py's C++ environment where it can; `atari-sb3`: SB3's wrappers."""
    n_envs: Whole = 1
    """Parallel environments."""
    normalize: bool = False
    """Whether observations and rewards go through VecNormalize."""
    algorithm: Algorithm = "ppo"
    """As SB3 and sb3-contrib call their packages."""
    algorithm_kwargs: dict[str, Any] = {}
    """Keyword arguments of the algorithm, as SB3 names them; `policy_kwargs` among them."""
    method: str = "hub-pathway"
    """A method's name (`hubrl methods`)."""
    options: dict[str, Any] = {}
    """Options of the method, and at the level of outputs of the policy."""
    level: Literal["features", "outputs"] | None = None
    """At what level the sources speak; the best the algorithm can hear if not given."""
    tuned: bool = False
    """Whether the sources are trained further."""
    source_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of tuned sources, as a factor on the algorithm's; the method's own if not given."""
    cached: bool = False
    """Whether frozen sources' features are computed once a step and stored, instead of in every pass; at the level of features."""
    hub: Path | None = None
    """A hub's folder; relative paths start at the config's folder."""
    agents: tuple[str, ...] = ()
    """Agents' files or folders, instead of a hub; `agent.zip,statistics.pkl` names a companion."""
    probe_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the steps that a probe of the sources may take, counted among them."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the steps behind the probe in which only the critic learns, where PPO or A2C hear outputs."""
    steps: Whole
    """Environment steps, summed over parallel environments."""
    seed: Annotated[int, Field(ge=0)] = 0
    """One seed gives one result on a CPU."""
    eval_every: Whole | None = None
    """Environment steps between evaluations; a tenth of `steps` if not given."""
    eval_episodes: Whole = 10
    """Episodes of an evaluation, played deterministically; with drawn actions in Atari games, as in the RL Zoo."""
    checkpoint_every: Whole | None = None
    """Environment steps between checkpoints; a tenth of `steps` if not given."""
    threads: Whole = 1
    """Threads of torch; one is fastest for small networks."""
    device: str = "auto"
    """As SB3 names devices."""
    precision: Precision = "float32"
    """In what NatureCNNs are computed: `bfloat16` is two to four times faster where the processor has it (docs/speed.md)."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        """Refuse what torch does not know."""
        try:
            torch.device("cpu" if device == "auto" else device)
        except RuntimeError:
            raise ValueError(f"{device!r} is no device of torch; expected auto, cpu, cuda or the like") from None
        return device

    @property
    def needs_hub(self) -> bool:
        """Whether the method learns from sources, or has to know their size."""
        return self.method != "scratch" or bool(self.options.get("hub_sized"))


def read_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """A config from YAML, with paths made absolute and values from `--set` put in.

    Args:
        path: The YAML file.
        overrides: `field=value`, or `options.name=value` for a field of plain data; values are YAML.

    Raises:
        BadFile: If the file cannot be read.
        BadConfig: If a field is unknown or its value cannot be.
        UnknownName: If the method or one of its options is unknown.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise BadConfig(f"{path} holds {type(plain).__name__}, expected fields and values.")
    for override in overrides or []:
        assign(plain, override)
    config = parse_config(plain, str(path))
    folder = path.parent.resolve()
    found = {"hub": None if config.hub is None else folder / config.hub}
    agents = tuple(",".join(located(part, folder) for part in agent.split(",")) for agent in config.agents)
    return config.model_copy(update={**found, "agents": agents})


def located(agent: str, folder: Path) -> str:
    """An agent's path, which starts at a folder if it is relative; a repository of Hugging Face as it is."""
    return agent if agent.startswith(HUGGING_FACE) else str(folder / agent)


def parse_config(plain: dict[str, Any], where: str) -> RunConfig:
    """A config from plain data; `where` it stands is for the message."""
    for field in plain:
        if field not in RunConfig.model_fields:
            raise BadConfig(f"{where}: {unknown('field', str(field), RunConfig.model_fields)}")
    try:
        config = RunConfig.model_validate(plain)
    except ValidationError as error:
        raise BadConfig(f"{where}: {first_problem(error)}.") from error
    find(config.method)
    check_options(config.method, config.options, also={**Outputs.model_fields, **Teaching.model_fields})
    if config.needs_hub and config.hub is None and not config.agents:
        raise BadConfig(f"{where}: method {config.method!r} learns from sources; name a hub or agents.")
    if config.cached:
        check_cached(config.method, tuned=config.tuned)
    if config.hub is not None and config.agents:
        raise BadConfig(f"{where}: both a hub and agents are named; name one of them.")
    return config


def assign(plain: dict[str, Any], override: str) -> None:
    """Put one `field=value`, or `field.inner=value`, into plain data; the value is YAML.

    Raises:
        BadConfig: If it is not of that form.
    """
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise BadConfig(f"{override!r} was given; expected name=value.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadConfig(f"{override!r}: the value is not YAML.") from error
    *path, last = name.split(".")
    place = plain
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise BadConfig(f"{override!r}: {part!r} holds no fields.")
    place[last] = value
