"""What is written down about a source: a YAML card beside its weights, with a format version.

The card says everything but the weights: a source is rebuilt from its card, and a saved target carries the cards of
its sources as plain data in its keyword arguments.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hubrl.errors import BadFile, check_format
from hubrl.spaces import from_plain

CARD_FORMAT = 1

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Size = Annotated[int, Field(gt=0, le=2**16)]

Activation = Literal["tanh", "relu", "elu", "gelu", "silu", "leaky_relu", "sigmoid", "mish", "softplus", "selu", "identity"]


Preprocessing = Literal["none", "atari", "atari-sb3"]
"""How observations are made of a task: as they are, or to SB3's Atari conventions in ale-py's C++ or in SB3's own wrappers."""


class Plain(BaseModel):
    """Base of everything that is written to YAML or JSON: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def plain(self) -> dict[str, Any]:
        """This model as data that YAML and JSON hold: defaults left out, but never the format."""
        version = {"format": dict(self)["format"]} if "format" in type(self).model_fields else {}
        return {**version, **self.model_dump(mode="json", exclude_defaults=True)}


class Conv(Plain):
    """One convolution and the activation behind it."""

    channels: Size
    """Output channels."""
    kernel: Size
    stride: Size
    padding: int = Field(default=0, ge=0, le=2**16)


class Trunk(Plain):
    """From one observation to a flat vector: convolutions, then perhaps one linear layer; with neither, just flattened."""

    convs: tuple[Conv, ...] = ()
    linear: Size | None = None
    """Width of the linear layer behind the convolutions."""
    activation: Activation = "relu"


class Layers(Plain):
    """A multilayer perceptron: hidden widths and the activation after each."""

    widths: tuple[Size, ...] = ()
    activation: Activation = "tanh"


class ActionHead(Plain):
    """From the encoder's features to the action distribution, as the algorithm has it."""

    kind: Literal["gaussian", "squashed-gaussian", "deterministic", "categorical", "q-values", "quantiles"]
    """`deterministic` is TD3's and DDPG's: a tanh that spans the bounds."""
    log_std: Literal["parameter", "linear", "sde"] | None = None
    """Where a Gaussian has its standard deviation from; `sde` is SB3's state-dependent exploration."""
    log_std_width: Size | None = None
    """Columns of the `sde` matrix; one if the standard deviation is the same for every action."""
    expln: bool = False
    """Whether `sde` turns its matrix into standard deviations by SB3's `expln` instead of `exp`."""
    mean_clip: float | None = None
    """Symmetric bound on the mean before the tanh (SAC with state-dependent exploration)."""
    quantiles: Size | None = None
    """Quantiles of every action's return (QR-DQN)."""


class ValueHead(Plain):
    """What the agent thinks its observation, or an action in it, is worth; a return on its own task's scale."""

    kind: Literal["state", "action"]
    """`state` is a value function V(s); `action` is an ensemble of critics Q(s, a)."""
    trunk: Literal["shared", "own"] = "shared"
    """Whether it reads the encoder's trunk or has one of its own."""
    layers: Layers = Layers()
    critics: Size = 1
    quantiles: Size = 1
    """Quantiles of every critic (TQC)."""


class Declared(Plain):
    """A network of SB3's shapes, declared layer by layer."""

    kind: Literal["declared"]
    trunks: dict[str, Trunk] = {"": Trunk()}
    """One trunk for every key of a Dict observation, in SB3's order; one with an empty key otherwise."""
    hidden: Layers = Layers()
    """The agent's own layers between the trunks and the heads."""
    action: ActionHead | None = None
    value: ValueHead | None = None
    hub: dict[str, Any] | None = None
    """For an agent that was itself trained on a hub's features: that hub, as plain data, in place of the trunks."""


class Registered(Plain):
    """A network that a builder registered in this process makes (`hubrl.register_network`)."""

    kind: Literal["registered"]
    builder: str
    """The registered name."""
    kwargs: dict[str, Any] = {}
    """Plain keyword arguments of the builder."""


class Frames(Plain):
    """Keep the last channels of a stack of frames."""

    op: Literal["frames"]
    last: Size


class Crop(Plain):
    """Keep rows `top` to `bottom` (excluded) of an image."""

    op: Literal["crop"]
    top: int = Field(ge=0)
    bottom: Size


class Resize(Plain):
    """Resize an image bilinearly."""

    op: Literal["resize"]
    height: Size
    width: Size


class Stretch(Plain):
    """Stretch the contrast of every image to the full range from 0 to 1."""

    op: Literal["stretch"]


class Select(Plain):
    """Keep some entries of a flat observation, in this order."""

    op: Literal["select"]
    indices: tuple[Annotated[int, Field(ge=0)], ...]


class Key(Plain):
    """Read one part of a Dict observation."""

    op: Literal["key"]
    name: str


class Keys(Plain):
    """Read some parts of a Dict observation, under the names that the network knows them by."""

    op: Literal["keys"]
    names: dict[str, str]
    """The target's part for each of the network's."""


Step = Annotated[Frames | Crop | Resize | Stretch | Select | Key | Keys, Field(discriminator="op")]


class ActionMap(Plain):
    """From the source's own actions to the target's, where the two differ in order or in sign (a mirrored gait)."""

    order: tuple[int, ...] | None = None
    """For every entry of the target's action (or every choice), the source's that stands for it; a permutation."""
    signs: tuple[Literal[-1, 1], ...] | None = None
    """For every entry of the target's action its sign; Box alone."""


class Normalisation(Plain):
    """The statistics of VecNormalize are among the weights; this is how they are applied."""

    keys: tuple[str, ...] = ("",)
    """The keys of a Dict observation that are normalised; one empty key otherwise."""
    clip: float = Field(default=10.0, gt=0)
    epsilon: float = Field(default=1e-8, ge=0)


class SourceCard(Plain):
    """Everything about a source but its weights."""

    format: int = CARD_FORMAT
    """Version of this format."""
    name: str = Field(pattern=NAME_PATTERN)
    """How the source is called in its hub, in logs and in files."""
    algorithm: str
    """What it was trained with, as SB3 and sb3-contrib name their classes."""
    observation_space: dict[str, Any]
    """What its network reads, after `preprocessing`, as plain data; images channel first."""
    action_space: dict[str, Any] | None = None
    """The actions of its own head; none for an encoder alone."""
    network: Annotated[Declared | Registered, Field(discriminator="kind")]
    preprocessing: tuple[Step, ...] = ()
    """Steps from the target's observation to the one its network reads."""
    action_meanings: tuple[str, ...] | None = None
    """What its discrete actions mean, in order, as the ALE names them; by these it acts where the target's are others."""
    action_map: ActionMap | None = None
    """From its own head's actions to the target's; none where they are the same."""
    normalize_images: bool = True
    """Whether images were divided by 255, as SB3 does unless told otherwise."""
    normalisation: Normalisation | None = None
    """How it normalises observations; none if it was trained on them as they are."""
    task: str | None = None
    """Gymnasium id of the task it was trained on."""
    task_kwargs: dict[str, Any] = {}
    task_preprocessing: Preprocessing | None = None
    """How the task's observations were made, as `preprocessing` of a config; not known of older cards."""
    steps: int | None = None
    """Environment steps of training."""
    seed: int | None = None
    episodes: int | None = None
    """Episodes behind `return_mean` and `return_std`, played deterministically."""
    return_mean: float | None = None
    return_std: float | None = None
    licence: str | None = None
    origin: str | None = None
    """Where it comes from: a file's name, a repository, a command."""
    notes: str | None = None
    """What a reader must know, above all how it differs from the agent it was cut from."""
    weights: dict[str, str] = {}
    """For bare weights from elsewhere: the file's name of each weight, by hubrl's name; what is not named is left out."""
    sha256: str | None = None
    """Digest of the file that holds its weights; none until they were saved."""

    @property
    def observations(self) -> spaces.Space[Any]:
        """The space that its network reads, after `preprocessing`."""
        return from_plain(self.observation_space)

    @property
    def actions(self) -> spaces.Space[Any] | None:
        """The space of its own head's actions, if it has one."""
        return None if self.action_space is None else from_plain(self.action_space)


def read_card(path: Path) -> SourceCard:
    """Read and check a card.

    Raises:
        BadFile: If there is none, or it is not a card, or it is of a newer format.
    """
    return parse_card(read_yaml(path), str(path))


def parse_card(plain: object, where: str) -> SourceCard:
    """A card from plain data; `where` it stands is for the message."""
    check_format(plain, CARD_FORMAT, f"{where} is a card")
    try:
        card = SourceCard.model_validate(plain)
    except ValidationError as error:
        raise BadFile(f"{where} is not a source card: {first_problem(error)}.") from error
    for space in (card.observation_space, card.action_space):
        if space is not None:
            from_plain(space)
    return card


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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that `1e5` and `3e-4` are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Plain data from YAML; raises `yaml.YAMLError` if it is none."""
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
    where, said = ".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
