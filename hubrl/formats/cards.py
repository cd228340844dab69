"""Cards of sources: YAML with everything about a pretrained agent but its weights.

A card has a format version. A source is rebuilt from its card and its weights. A saved target has
the cards of its sources as plain data in its keyword arguments.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from gymnasium import spaces
from pydantic import Field, ValidationError

from hubrl.errors import BadFile, check_format
from hubrl.formats.limits import DEFAULT_LIMITS, UNLIMITED, Limits
from hubrl.formats.schema import Schema, first_problem, read_yaml
from hubrl.formats.spaces import space_from_dict

CARD_FORMAT = 1

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

MOST_LAYERS = 256
"""Greatest number of layers of a stack, and of critics."""

Size = Annotated[int, Field(gt=0, le=2**16)]

Activation = Literal[
    "tanh",
    "relu",
    "elu",
    "gelu",
    "silu",
    "leaky_relu",
    "sigmoid",
    "mish",
    "softplus",
    "selu",
    "identity",
]


Preprocessing = Literal["none", "atari", "atari-sb3"]
"""Preprocessing of a task: none, or SB3's Atari conventions in ale-py's C++ or by SB3's own
wrappers."""


class Conv(Schema):
    """One convolution and the activation behind it."""

    channels: Size
    """Output channels."""
    kernel: Size
    stride: Size
    padding: int = Field(default=0, ge=0, le=2**16)


class Trunk(Schema):
    """Layers from one observation to a flat vector: convolutions, then an optional linear layer.

    With neither the observation is flattened.
    """

    convs: Annotated[tuple[Conv, ...], Field(max_length=MOST_LAYERS)] = ()
    linear: Size | None = None
    """Width of the linear layer behind the convolutions."""
    activation: Activation = "relu"


class Layers(Schema):
    """A multilayer perceptron: hidden widths and the activation after each."""

    widths: Annotated[tuple[Size, ...], Field(max_length=MOST_LAYERS)] = ()
    activation: Activation = "tanh"


class ActionHead(Schema):
    """Layers from the encoder's features to the action distribution of the algorithm."""

    kind: Literal[
        "gaussian",
        "squashed-gaussian",
        "deterministic",
        "categorical",
        "q-values",
        "quantiles",
        "atoms",
    ]
    """`deterministic` is TD3's and DDPG's: a tanh that spans the bounds; `atoms` is C51's: the
    probability of every return among the weights `action.atoms`, for every action."""
    log_std: Literal["parameter", "linear", "sde"] | None = None
    """Origin of a Gaussian's standard deviation; `sde` is SB3's state-dependent exploration."""
    log_std_width: Size | None = None
    """Columns of the `sde` matrix; one if the standard deviation is the same for every action."""
    expln: bool = False
    """Whether `sde` turns its matrix into standard deviations by SB3's `expln` instead of `exp`."""
    mean_clip: Annotated[float, Field(gt=0)] | None = None
    """Symmetric bound on the mean before the tanh (SAC with state-dependent exploration)."""
    quantiles: Size | None = None
    """Quantiles of every action's return (QR-DQN)."""
    atoms: Size | None = None
    """Returns between which every action's return is distributed (C51)."""


class ValueHead(Schema):
    """Layers that estimate V(s) or Q(s, a), on the scale of the agent's own task."""

    kind: Literal["state", "action"]
    """`state` is a value function V(s); `action` is an ensemble of critics Q(s, a)."""
    trunk: Literal["shared", "own"] = "shared"
    """Whether the layers read the encoder's trunk or a trunk of their own."""
    layers: Layers = Layers()
    critics: Annotated[int, Field(gt=0, le=MOST_LAYERS)] = 1
    quantiles: Size = 1
    """Quantiles of every critic (TQC)."""


class Declared(Schema):
    """A network of SB3's shapes, declared layer by layer."""

    kind: Literal["declared"]
    trunks: dict[str, Trunk] = {"": Trunk()}
    """One trunk for every key of a Dict observation, in SB3's order; one with an empty key
    otherwise."""
    hidden: Layers = Layers()
    """The agent's own layers between the trunks and the heads."""
    action: ActionHead | None = None
    value: ValueHead | None = None
    hub: dict[str, Any] | None = None
    """The hub of an agent that was itself trained on a hub's features, as plain data; it replaces
    the trunks."""


class Registered(Schema):
    """A network that a builder registered in this process makes (`hubrl.register_network`)."""

    kind: Literal["registered"]
    builder: str
    """The registered name."""
    kwargs: dict[str, Any] = {}
    """Plain keyword arguments of the builder."""


class Frames(Schema):
    """Keep the last channels of a stack of frames."""

    op: Literal["frames"]
    last: Size


class Crop(Schema):
    """Keep rows `top` to `bottom` (excluded) of an image."""

    op: Literal["crop"]
    top: int = Field(ge=0)
    bottom: Size


class Resize(Schema):
    """Resize an image bilinearly."""

    op: Literal["resize"]
    height: Size
    width: Size


class Stretch(Schema):
    """Stretch the contrast of every image to the full range from 0 to 1."""

    op: Literal["stretch"]


class Select(Schema):
    """Keep some entries of a flat observation, in this order."""

    op: Literal["select"]
    indices: tuple[Annotated[int, Field(ge=0)], ...]


class Constants(Schema):
    """Insert numbers that the target does not observe, each at its place in the result."""

    op: Literal["constants"]
    values: dict[
        Annotated[int, Field(ge=0, le=2**16)], Annotated[float, Field(allow_inf_nan=False)]
    ]


class Key(Schema):
    """Read one part of a Dict observation."""

    op: Literal["key"]
    name: str


class Keys(Schema):
    """Read some parts of a Dict observation, renamed to the network's own keys."""

    op: Literal["keys"]
    names: dict[str, str]
    """Key of the target's part by key of the network's."""


Step = Annotated[
    Frames | Crop | Resize | Stretch | Select | Constants | Key | Keys, Field(discriminator="op")
]


class ActionMap(Schema):
    """Map from the source's actions to the target's, if order or sign differ (a mirrored gait)."""

    order: tuple[int, ...] | None = None
    """Index of the source's entry (or choice) for each entry of the target's action; a
    permutation."""
    signs: tuple[Literal[-1, 1], ...] | None = None
    """Sign of each entry of the target's action; only for a Box."""


class Normalisation(Schema):
    """Settings of VecNormalize; its statistics are among the weights."""

    keys: tuple[str, ...] = ("",)
    """The keys of a Dict observation that are normalised; one empty key otherwise."""
    clip: float = Field(default=10.0, gt=0)
    epsilon: float = Field(default=1e-8, ge=0)


class SourceCard(Schema):
    """Everything about a source but its weights."""

    format: int = CARD_FORMAT
    """Version of this format."""
    name: str = Field(pattern=NAME_PATTERN)
    """Name of the source in its hub, in logs and in files."""
    algorithm: str
    """Algorithm of its training, as SB3 and sb3-contrib name their classes."""
    observation_space: dict[str, Any]
    """Observation space of its network, after `preprocessing`, as plain data; images channel
    first."""
    action_space: dict[str, Any] | None = None
    """Action space of its own head; none for an encoder alone."""
    network: Annotated[Declared | Registered, Field(discriminator="kind")]
    preprocessing: tuple[Step, ...] = ()
    """Steps from the target's observation to the network's input."""
    action_meanings: tuple[str, ...] | None = None
    """ALE names of its discrete actions, in order; they translate its actions to a target with
    another action set."""
    action_map: ActionMap | None = None
    """Map from its own head's actions to the target's; none where they are the same."""
    normalize_images: bool = True
    """Whether images were divided by 255, as SB3 does unless `normalize_images=False`."""
    normalisation: Normalisation | None = None
    """Normalisation of observations; none if it was trained on raw ones."""
    task: str | None = None
    """Gymnasium id of the task it was trained on."""
    task_kwargs: dict[str, Any] = {}
    task_preprocessing: Preprocessing | None = None
    """Preprocessing of that task, as `preprocessing` of a config; none if unknown."""
    steps: int | None = None
    """Environment steps of training."""
    seed: int | None = None
    episodes: int | None = None
    """Episodes behind `return_mean` and `return_std`, played deterministically."""
    return_mean: float | None = None
    return_std: float | None = None
    licence: str | None = None
    origin: str | None = None
    """Origin: a file's name, a repository, a command."""
    notes: str | None = None
    """Remarks for the reader, above all differences from the original agent."""
    weights: dict[str, str] = {}
    """Names of foreign weights in their file, by hubrl's name; unnamed weights are left out."""
    sha256: str | None = None
    """Digest of its weights' file; none until they are saved."""

    @property
    def observations(self) -> spaces.Space[Any]:
        """The space that its network reads, after `preprocessing`."""
        return space_from_dict(self.observation_space, UNLIMITED)

    @property
    def actions(self) -> spaces.Space[Any] | None:
        """The space of its own head's actions, if it has one."""
        return None if self.action_space is None else space_from_dict(self.action_space, UNLIMITED)


def read_card(path: Path, limits: Limits = DEFAULT_LIMITS) -> SourceCard:
    """Read and check a card.

    Raises:
        BadFile: If there is none, or it is not a card, or it is of a newer format.
    """
    return parse_card(read_yaml(path, limits), str(path), limits)


def parse_card(plain: object, where: str, limits: Limits = DEFAULT_LIMITS) -> SourceCard:
    """A card from plain data.

    Args:
        plain: The data.
        where: Name of the place that holds it, for the message.
        limits: Limits on its spaces.

    Raises:
        BadFile: If it is not a card, or it is of a newer format.
    """
    check_format(plain, CARD_FORMAT, f"{where} is a card")
    try:
        card = SourceCard.model_validate(plain)
    except ValidationError as error:
        raise BadFile(f"{where} is not a source card: {first_problem(error)}.") from error
    for space in (card.observation_space, card.action_space):
        if space is not None:
            space_from_dict(space, limits)
    return card
