"""The contract of a transfer method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from hubrl.methods.routing_stats import Tally
from hubrl.routing.pathways import Pathways
from hubrl.routing.weights import Weighted, aggregate
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations

Aggregation = Literal["mixture", "mean", "whole"]
"""What becomes of outputs: one pathway acts, the weighted mean of all acts, or what the method makes of them as a whole."""


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
