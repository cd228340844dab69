"""The contract of a transfer method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.router import Router, Routing
from hubrl.routing.weights import PathwayWeights, aggregate, entropy_nats
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations

Aggregation = Literal["mixture", "mean", "whole"]
"""The policy's action: one pathway's, the weighted mean of all, or the method's own result."""

QLearning = Literal["explorers", "teachers", "source", "q_values"]
"""Service of a method to DQN at the level of outputs: sources play whole episodes and teach the
learner (`explorers`), sources teach alone (`teachers`), one source's Q-network is trained further
(`source`), or the method computes the learner's Q-values (`q_values`)."""


class Routed(NamedTuple):
    """Result of routing a batch, at either level."""

    whole: Float[Tensor, "batch features"] | None
    """Features, or the parameters of one action distribution; None where they are the aggregate of
    `pathway_outputs` by the weights."""
    loss: Float[Tensor, ""]
    """The method's own loss, added to that of the algorithm."""
    pathway_outputs: Float[Tensor, "batch pathways width"] | None = None
    """Features or action parameters of every pathway; zeros where it is not active."""
    log_weights: Float[Tensor, "batch pathways"] | None = None
    """Logarithms of the pathway weights, minus infinity where not active; None without weights."""

    @property
    def weights(self) -> Float[Tensor, "batch pathways"] | None:
        """Pathway weights; every row sums to one."""
        return None if self.log_weights is None else self.log_weights.exp()

    @property
    def features(self) -> Float[Tensor, "batch features"]:
        """`whole`, or the aggregate of the pathways' outputs."""
        if self.whole is not None:
            return self.whole
        assert self.pathway_outputs is not None
        assert self.weights is not None
        return aggregate(self.pathway_outputs, self.weights)


@runtime_checkable
class Experts(Protocol):
    """Networks that can act one by one, such as the pathways."""

    names: list[str]

    def compute_outputs(
        self,
        observations: Observations,
        active: Bool[Tensor, "batch experts"],
        fresh: Tensor | None = None,
    ) -> Float[Tensor, "batch experts width"]:
        """Outputs of the active experts; zeros for the others."""


class RoutingSums(NamedTuple):
    """Sums of routing statistics."""

    rows: int
    passes: int
    """Batches with a loss."""
    weight: Float[Tensor, " pathways"]
    active: Float[Tensor, " pathways"]
    """Rows in which each pathway was active."""
    entropy: float
    """Of each row's weights, in nats."""
    loss: float
    last: Float[Tensor, "batch pathways"]
    """Weights of the last batch."""


class RoutingStats:
    """Weights and losses of the batches since the last reset.

    Batches are collected and summed when `sums` is read, or when many are waiting: a sum in every
    step would cost more than the step's routing.

    Args:
        names: Names of the pathways.
    """

    MAX_WAITING = 256
    """Batches that wait to be summed."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._waiting: list[Tensor] = []
        self._losses: list[Tensor] = []
        zeros = torch.zeros(len(self.names))
        empty = torch.zeros(0, len(self.names))
        self._sums = RoutingSums(0, 0, zeros, zeros.clone(), 0.0, 0.0, empty)

    def add(
        self,
        log_weights: Float[Tensor, "batch pathways"] | None,
        loss: Float[Tensor, ""] | None = None,
    ) -> None:
        """Add a batch's weights, by their logarithms, and its loss; None for either if unknown."""
        if log_weights is not None:
            weights = log_weights.detach() if log_weights.requires_grad else log_weights
            self._waiting.append(weights)
        if loss is not None:
            self._losses.append(loss.detach())
        if max(len(self._waiting), len(self._losses)) >= self.MAX_WAITING:
            self._sum_up()

    @property
    def sums(self) -> RoutingSums:
        """Sums over all batches."""
        self._sum_up()
        return self._sums

    @torch.no_grad()
    def _sum_up(self) -> None:
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


class Method(nn.Module, ABC):
    """A way to make one network of several sources.

    A subclass builds its `pathways` and defines `forward`. Keyword-only arguments of its
    constructor are its options, in configs, on the command line and in `Hub.policy_kwargs`; `Args`
    of its docstring are their documentation.

    Args:
        pathways: The pathways between which it routes.
    """

    summary: ClassVar[str] = ""
    method_name: ClassVar[str] = ""
    """Name under which it is registered."""
    levels: ClassVar[tuple[action_params.Level, ...]] = ("features", "outputs")
    """Levels at which it serves."""
    aggregation: ClassVar[Aggregation | None] = None
    """Use of the outputs, where the method leaves no choice."""
    passes_observations: ClassVar[bool] = True
    """Whether flat observations are passed on beside its features."""
    q_learning: ClassVar[QLearning | None] = None
    """Service to DQN at the level of outputs; None for none."""
    loss_name: ClassVar[str] = "exploration"
    """Name of its loss in logs."""
    tunes: ClassVar[bool] = False
    """Whether its sources are always trained further."""
    keeps_frozen: ClassVar[bool] = False
    """Whether its sources cannot be trained further."""
    needs_only_features: ClassVar[bool] = False
    """Whether it can be computed from stored features of frozen sources."""
    allows_residual: ClassVar[bool] = True
    """Whether a learned correction may be added to its sources' outputs."""
    copies_source: ClassVar[bool] = False
    """Whether the fresh pathway goes on alone from a copy of the best source, at the level of
    outputs."""
    starts_copied: ClassVar[bool] = False
    """Whether its one source is copied into the target's own actor where that is possible, at the
    level of outputs, so that one ordinary network trains."""
    keeps_source_std: ClassVar[bool] = False
    """Whether sources keep their own standard deviations, because they never act themselves."""
    starts_as_scratch: ClassVar[bool] = False
    """Whether its features start as those of SB3's own network, bit for bit, under SB3's own
    heads."""
    judging_share: ClassVar[float] = 0.0
    """Default of `judging_share`: share of the episodes that one pathway plays to be judged."""

    router: Router | None
    """Network whose logits give the pathway weights; None for methods without one."""

    def __init__(self, pathways: Pathways) -> None:
        super().__init__()
        self.pathways = pathways
        self.router = None
        self.top_k = len(pathways.names)
        """Most pathways that are active for one observation."""
        self.features_dim = pathways.width
        self.routing_stats = RoutingStats(pathways.names)
        self.progress_remaining = 1.0
        """Share of the training that is still to come, set by a callback."""

    @classmethod
    def source_lr(cls, level: action_params.Level) -> float:
        """Default learning rate of trained sources, as a factor on the algorithm's."""
        return 1.0 if cls.tunes else 0.1

    def draw_network(self) -> None:
        """Draw the new network of a method that `starts_as_scratch`, and nothing else."""

    @abstractmethod
    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Result of routing a batch.

        Args:
            observations: As SB3 preprocesses them.
            fresh: At the level of outputs, the output of the target's own actor `(batch, width)`.
            noise: Result of `draw_noise` for these observations; None for no noise.
            source_outputs: Cached outputs of all sources, if any.
        """

    def hand_over(self) -> None:
        """Leave the target's own actor, a copy of the one source, as the only pathway."""
        (name,), target = self.pathways.names, self.pathways.target
        self.pathways = Pathways([], target, fresh=True, fresh_name=name)

    def draw_noise(
        self, observations: Observations, key: int
    ) -> Float[Tensor, "batch pathways"] | None:
        """Exploration noise, standard Gaussian and replayable; None for methods without any.

        Args:
            observations: As SB3 preprocesses them.
            key: Seed of a rollout.
        """
        return None

    def update_progress(self, progress_remaining: float) -> None:
        """Take over the share of the training that is still to come; 1 outside a training."""
        self.progress_remaining = progress_remaining

    @property
    def noisy(self) -> bool:
        """Whether it explores by noise."""
        return False

    def apply_probe(
        self, kept: Sequence[bool], start: Sequence[float], returns: Sequence[float] = ()
    ) -> None:
        """Apply a probe's result, one entry for each of the `probe_candidates`.

        Args:
            kept: Whether the candidate may be active at all.
            start: Initial logit of the router, in nats; only differences matter.
            returns: Mean return in the probe, NaN if it never played; empty without a probe.
        """

    def admit(self, source: int) -> None:
        """Let a source that a probe set aside be active from now on."""

    @property
    def probe_candidates(self) -> Experts:
        """Experts that a probe compares: the pathways, unless the method chooses something else."""
        return self.pathways

    @property
    def trusted_pathways(self) -> list[bool]:
        """Whether each pathway may be active at all."""
        return [True] * len(self.pathways.names)

    @property
    def awaits_probe(self) -> bool:
        """Whether the method uses a probe and none has been applied."""
        return False

    @property
    def fresh_alone(self) -> bool:
        """Whether only the fresh pathway is left, so that training is training from scratch."""
        return len(self.pathways.sources) == 0

    @property
    def reads_observations(self) -> bool:
        """Whether it reads observations itself, beside stored features."""
        return self.pathways.fresh is not None

    @property
    def reads_bytes(self) -> bool:
        """Whether uint8 images may be given undivided, for the same result."""
        return False

    def measures(self) -> dict[str, float]:
        """Numbers for logs beside its routing statistics, by tag."""
        return {}


class RoutedMethod(Method):
    """A method whose weights do not depend on outputs: unselected sources need no computation."""

    @abstractmethod
    def compute_weights(
        self, observations: Observations, noise: Tensor | None = None
    ) -> tuple[PathwayWeights, Float[Tensor, ""]]:
        """Pathway weights and the method's loss.

        Args:
            observations: As SB3 preprocesses them.
            noise: See `forward`.
        """

    @property
    def routing(self) -> Routing | None:
        """Router and rule of `compute_weights`; none under a rule of its own.

        A policy may then compute weights and their gradients together with its own.
        """
        return None


class TeacherMethod(Method):
    """A method whose sources teach a student and do not act."""

    @property
    @abstractmethod
    def coef_now(self) -> float:
        """Coefficient of the distillation loss at this point of the training."""

    @abstractmethod
    def teach(self, observations: Observations) -> Float[Tensor, "batch sources outputs"]:
        """Outputs of the teachers, without a gradient."""
