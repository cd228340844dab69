"""What a transfer method is, and the register of them."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_type_hints, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.nn.losses import entropy_nats
from hubrl.pathways import Pathways, Target
from hubrl.routing import Weighted, aggregate
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

Aggregation = Literal["mixture", "mean", "whole"]
"""What becomes of outputs: one pathway acts, the weighted mean of all acts, or what the method makes of them as a whole."""

_methods: dict[str, type["Method"]] = {}


class Routed(NamedTuple):
    """What a method makes of a batch, at either level."""

    whole: Float[Tensor, "batch features"] | None
    """Features, or the parameters of one action distribution; none where they are the aggregation of `speech` by `weights`."""
    loss: Float[Tensor, ""]
    """What the method adds to the task's loss."""
    speech: Float[Tensor, "batch speakers width"] | None = None
    """What every pathway said: features, or the parameters of its action distribution; zeros where it was not active."""
    log_weights: Float[Tensor, "batch pathways"] | None = None
    """Logarithms of pathway weights, minus infinity where a pathway is not active. None if the method has no weights."""

    @property
    def weights(self) -> Float[Tensor, "batch pathways"] | None:
        """Pathway weights; every row sums to one."""
        return None if self.log_weights is None else self.log_weights.exp()

    @property
    def features(self) -> Float[Tensor, "batch features"]:
        """What was made as a whole, or else of what every pathway said; aggregated when it is asked for."""
        if self.whole is not None:
            return self.whole
        assert self.speech is not None
        assert self.weights is not None
        return aggregate(self.speech, self.weights)


@runtime_checkable
class Speakers(Protocol):
    """Who can be asked to act, one by one."""

    names: list[str]

    def speak(
        self, observations: Observations, active: Bool[Tensor, "batch speakers"], fresh: Tensor | None = None
    ) -> Float[Tensor, "batch speakers width"]:
        """What the active ones say; zeros for the others."""


class Method(nn.Module, ABC):
    """How several sources become one: which speak, what each counts, and what is added to the loss.

    A subclass builds its `pathways` and defines `forward`. Its keyword-only arguments are its options, in
    configs, on the command line and in `Hub.policy_kwargs`; their documentation is the docstring's `Args`.
    """

    summary: ClassVar[str] = ""
    method_name: ClassVar[str] = ""
    """The name under which it is registered."""
    levels: ClassVar[tuple[action_params.Level, ...]] = ("features", "outputs")
    """The levels at which it serves."""
    aggregation: ClassVar[Aggregation | None] = None
    """What becomes of outputs, where the method leaves no choice."""
    passes_observations: ClassVar[bool] = True
    """Whether, at the level of features, flat observations are passed on beside them."""
    serves_q_values: ClassVar[bool] = False
    """Whether DQN can learn with it at the level of outputs: what it says as a whole, over discrete actions, is Q-values."""
    loss_name: ClassVar[str] = "exploration"
    """What the loss is that it adds, for the logs."""
    tunes: ClassVar[bool] = False
    """Whether the method's sources are always trained further."""
    keeps_frozen: ClassVar[bool] = False
    """Whether the method's sources cannot be trained further."""
    takes_heard: ClassVar[bool] = False
    """Whether the features of its frozen sources are all it asks of them, so that they may have been computed before."""
    corrects: ClassVar[bool] = True
    """Whether a learned correction may be added to what its sources say at the level of outputs."""
    own_std: ClassVar[bool] = False
    """Whether its sources keep the standard deviations that they learned, because they never act themselves."""
    judging_share: ClassVar[float] = 0.0
    """Share of the episodes that judge arms where one pathway acts at a time, unless told otherwise (`Outputs.judging_share`)."""

    def __init__(self, pathways: Pathways) -> None:
        super().__init__()
        self.pathways = pathways
        self.features_dim = pathways.width
        self.tally = Tally(pathways.names)
        self.remaining = 1.0
        """Share of the training that is still to come; a callback sees to it."""

    @classmethod
    def source_lr(cls, level: action_params.Level) -> float:
        """Learning rate of sources that are trained further at a level, as a factor on the algorithm's, unless it is said."""
        return 1.0 if cls.tunes else 0.1

    @abstractmethod
    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """Route a batch.

        Args:
            observations: As SB3 preprocesses them.
            fresh: At the level of outputs, what the target's own actor says `(batch, width)`.
            noise: What `draw_noise` gave for these observations `(batch, pathways)`; none for no noise.
        """

    def draw_noise(self, observations: Observations, key: int) -> Float[Tensor, "batch pathways"] | None:
        """Standard Gaussian noise of exploration for a batch, always the same under a key; none for methods without any.

        Args:
            observations: As SB3 preprocesses them.
            key: Changes once a rollout.
        """
        return None

    @property
    def noisy(self) -> bool:
        """Whether it explores by noise."""
        return False

    def trust(self, kept: Sequence[bool], start: Sequence[float], worth: Sequence[float] = ()) -> None:
        """Take over what a probe found out of the candidates; methods without a router have nothing to take over.

        Args:
            kept: For every candidate, whether it may be active at all.
            start: For every candidate, where the router starts for it; differences count.
            worth: For every candidate, its mean return in the probe, NaN if it never played; empty if there was none.
        """

    @property
    def candidates(self) -> Speakers:
        """Who races in a probe: the pathways, unless the method has other things to choose between."""
        return self.pathways

    @property
    def trusted_pathways(self) -> list[bool]:
        """For every pathway, whether it may be active at all."""
        return [True] * len(self.pathways.names)

    @property
    def awaits_probe(self) -> bool:
        """Whether a probe should set its trust before training starts."""
        return False

    @property
    def fresh_alone(self) -> bool:
        """Whether nothing is left but the fresh pathway, so that training is training from scratch."""
        return len(self.pathways.sources) == 0

    @property
    def reads_observations(self) -> bool:
        """Whether it reads observations itself, where its sources' features were computed before."""
        return self.pathways.fresh is not None

    @property
    def reads_bytes(self) -> bool:
        """Whether images may be given as the bytes they are, for the same features."""
        return False

    def measures(self) -> dict[str, float]:
        """What the method has to say for the logs beside its tally, by tag."""
        return {}


class Weighing(Method):
    """A method whose weights are known before anybody speaks, so that one pathway can be drawn and no other be asked."""

    @abstractmethod
    def weigh(self, observations: Observations, noise: Tensor | None = None) -> tuple[Weighted, Float[Tensor, ""]]:
        """The pathways' weights and the loss alone.

        Args:
            observations: As SB3 preprocesses them.
            noise: See `forward`.
        """


class Tally:
    """What went through a method since it was last asked, for logs; added up when it is asked, or when much has come together."""

    MOST = 256
    """Batches that wait to be added up."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._waiting: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._sums = Sums(0, 0, torch.zeros(len(self.names)), torch.zeros(len(self.names)), 0.0, 0.0, torch.zeros(0, len(self.names)))

    def count(self, log_weights: Float[Tensor, "batch pathways"] | None, loss: Float[Tensor, ""] | None = None) -> None:
        """Add a batch, by the logarithms of its weights; without them only its loss."""
        if log_weights is not None:
            self._waiting.append(log_weights.detach() if log_weights.requires_grad else log_weights)
        if loss is not None:
            self._losses.append(loss.detach())
        if max(len(self._waiting), len(self._losses)) >= self.MOST:
            self._add_up()

    @property
    def sums(self) -> "Sums":
        """All that was counted."""
        self._add_up()
        return self._sums

    @torch.no_grad()
    def _add_up(self) -> None:
        sums = self._sums
        if self._waiting:
            weights = torch.cat(self._waiting).exp().cpu()
            self._sums = sums = sums._replace(
                rows=sums.rows + len(weights),
                weight=sums.weight + weights.sum(dim=0),
                active=sums.active + (weights > 0).sum(dim=0),
                entropy=sums.entropy + float(entropy_nats(weights).sum()),
                last=weights[-len(self._waiting[-1]) :],
            )
        if self._losses:
            loss = sums.loss + float(torch.stack(self._losses).sum())
            self._sums = sums._replace(passes=sums.passes + len(self._losses), loss=loss)
        self._waiting, self._losses = [], []


class Sums(NamedTuple):
    """What a tally added up."""

    rows: int
    passes: int
    """Batches whose loss was counted."""
    weight: Float[Tensor, " pathways"]
    active: Float[Tensor, " pathways"]
    """In how many rows each pathway was active."""
    entropy: float
    loss: float
    last: Float[Tensor, "batch pathways"]
    """Weights of the last batch."""


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a method known by a name, in configs and everywhere else.

    Raises:
        BadConfig: If another method has the name.
    """

    def keep(method: type[Method]) -> type[Method]:
        if _methods.get(name, method) is not method:
            raise BadConfig(f"Another method is registered as {name!r}; choose another name.")
        _methods[name] = method
        method.method_name = name
        return method

    return keep


def available() -> list[str]:
    """The names of all registered methods, sorted."""
    return sorted(_methods)


def find(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in _methods:
        raise UnknownName(unknown("method", name, _methods))
    return _methods[name]


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """A method's options: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(find(name).__init__).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(name: str, options: Collection[str], also: Collection[str] = ()) -> None:
    """Refuse options that a method does not have.

    Args:
        name: The method's name.
        options: The names of the options given.
        also: Options of what the method works in, which are known too.

    Raises:
        UnknownName: Naming the nearest option that it has.
    """
    known = [*options_of(name), *also]
    for option in options:
        if option not in known:
            raise UnknownName(unknown(f"option of method {name!r}", option, known))


def plain_values(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options with NumPy's numbers as Python's; values that they cannot have, by their annotations, are refused.

    Raises:
        BadConfig: Naming the option, what was given and what is expected.
    """
    hints = get_type_hints(find(name).__init__, include_extras=True)
    plain = {option: given.item() if isinstance(given, np.generic) else given for option, given in options.items()}
    for option, value in plain.items():
        try:
            TypeAdapter(hints[option]).validate_python(value, strict=True)
        except ValidationError as error:
            raise BadConfig(f"{option}={value!r} was given for method {name!r}: {error.errors()[0]['msg']}.") from error
    return plain


def check_level(name: str, level: action_params.Level) -> None:
    """Refuse a level at which a method does not serve.

    Raises:
        BadConfig: Saying which levels it has.
    """
    levels = find(name).levels
    if level not in levels:
        raise BadConfig(f"Method {name!r} was asked to work at the level of {level}; it works at the level of {' or '.join(levels)} alone.")


def check_cached(name: str, *, tuned: bool) -> None:
    """Refuse features that were computed before where they do not serve.

    Raises:
        BadConfig: Saying why, and what to do.
    """
    method = find(name)
    if tuned or method.tunes:
        raise BadConfig(f"cached=True was given for method {name!r} with sources that are trained further; leave one of them out.")
    if not method.takes_heard:
        raise BadConfig(f"cached=True was given for method {name!r}, which is not made of frozen sources' features alone; leave it out.")


def create(name: str, sources: Sequence[Source], target: Target, options: dict[str, Any]) -> Method:
    """Build a method by its name.

    Raises:
        UnknownName: If there is no such method or option.
        BadConfig: If an option's value cannot be, or the method does not serve at the target's level.
        SpaceMismatch: If a source does not fit the target.
    """
    check_options(name, options)
    options = plain_values(name, options)
    check_level(name, target.level)
    return find(name)(sources, target, **options)  # type: ignore[arg-type, call-arg]
