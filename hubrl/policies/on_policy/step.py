"""Steps of a policy over sources' outputs: inputs, record, and commitments to pathways."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.sources.preprocessing import Observations

Rows = TypeVar("Rows", int, Tensor, np.ndarray)

SOLO_CODE = -2
"""Largest code of a solo episode: values <= -2 in `previous` encode one, by -2 - pathway index."""


def encode_solo(pathway: Rows) -> Rows:
    """Code of a pathway's solo episode, or the pathway of a code: its own inverse."""
    return SOLO_CODE - pathway


@dataclass(frozen=True)
class TrainingState:
    """State of the training that a policy needs, set once a rollout; the default is no training."""

    progress_remaining: float = 1.0
    """Share of the training that remains."""
    has_callback: bool = False
    """Whether HubCallback takes part."""
    records_steps: bool = False
    """Whether a rollout buffer stores a record of each step and yields it with each minibatch
    (`RecordedBatch`)."""
    critic_only: bool = False
    """Whether only the critic learns, as long as advantages are not yet reliable."""
    fused_update: bool = False
    """Whether PPO's own loop runs the update, in which alone parameters change, so that small ones
    may be packed and stepped together (`hubrl.nn.manual_gradients`)."""
    entropy_gradient: bool = True
    """Whether the algorithm may use the gradient of the entropy."""
    thread: int | None = None
    """The thread that trains (`threading.get_ident`)."""


@dataclass(frozen=True)
class StepRecord:
    """Tensors of a step that an update needs and SB3 does not store, row by row; none if unused."""

    previous: Int[Tensor, " batch"] | None = None
    """Committed pathway of the previous step; -1 for none, or a code of `encode_solo`."""
    acted: Int[Tensor, " batch"] | None = None
    """The pathway that acted."""
    noise: Float[Tensor, "batch pathways"] | None = None
    """The router's noise."""
    source_outputs: Float[Tensor, "batch sources outputs"] | None = None
    """Outputs of all sources."""
    selected_output: Float[Tensor, "batch outputs"] | None = None
    """Output of the source that acted."""
    deterministic: Bool[Tensor, " batch"] | None = None
    """Rows whose action was deterministic."""

    def tensors(self) -> dict[str, Tensor]:
        """Recorded tensors, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class RecordedBatch:
    """Observations of a minibatch and the record of their steps, in SB3's field `observations`."""

    observations: Any
    record: StepRecord


@dataclass
class StepContext:
    """Inputs of an action distribution."""

    observations: Observations
    exploring: bool
    """Whether the router's noise is on."""
    source_outputs: Float[Tensor, "batch sources outputs"] | None = None
    """Known outputs of all sources."""
    selected_output: Float[Tensor, "batch outputs"] | None = None
    """Known output of the source that acted."""
    previous: Int[Tensor, " batch"] | None = None
    """Committed pathway of the previous step, as in `StepRecord`."""
    acted: Int[Tensor, " batch"] | None = None
    """Pathway that acted, once drawn or from a record."""
    deterministic: Bool[Tensor, " batch"] | None = None
    """Rows of a rollout whose action is to be deterministic."""
    noise: Float[Tensor, "batch pathways"] | None = None
    """Known noise of the router."""
    only_fresh: bool = False
    """Whether the fresh pathway plays alone in all rows."""
    critic_only: bool = False
    """Whether only the critic learns, so that the routing loss is left out."""

    @classmethod
    def of_record(
        cls, observations: Observations, record: StepRecord, *, exploring: bool, critic_only: bool
    ) -> "StepContext":
        """Inputs of a recorded step, for its update."""
        return cls(
            observations,
            exploring,
            record.source_outputs,
            record.selected_output,
            record.previous,
            record.acted,
            noise=record.noise,
            critic_only=critic_only,
        )

    def record(self) -> StepRecord:
        """Record of a completed step."""
        return StepRecord(
            self.previous,
            self.acted,
            self.noise,
            self.source_outputs,
            self.selected_output,
            self.deterministic,
        )

    @property
    def n_rows(self) -> int:
        """Number of observations."""
        return len(self._part)

    @property
    def device(self) -> torch.device:
        """Device of the observations."""
        return self._part.device

    @property
    def _part(self) -> Tensor:
        """The observations, or one part of a Dict."""
        seen = self.observations
        return seen if isinstance(seen, Tensor) else next(iter(seen.values()))

    @property
    def solo(self) -> Bool[Tensor, " batch"] | None:
        """Rows of solo episodes; none where the previous pathway is unknown."""
        return None if self.previous is None else self.previous <= SOLO_CODE


class HeadInputs(NamedTuple):
    """Rows that the head reads."""

    critic: Float[Tensor, "batch _"]
    """Features, or the critic's last hidden layer where torch computes it."""
    actor: Float[Tensor, "batch _"]
    """The same of the actor."""
    router: Float[Tensor, "batch _"]
    """Inputs of the router's hidden layers; without `CommittedHead.routing` log pathway weights."""


class Routed(NamedTuple):
    """Pathway weights, and what their gradients need."""

    log_weights: Float[Tensor, "batch pathways"]
    spread: Float[Tensor, "batch pathways"] | None = None
    """Scale of the noise before its softplus; none where the head has no noisy router."""
    inactive: Bool[Tensor, "batch pathways"] | None = None
    """Pathways that may not act in a row; none where all may."""


class ActingParams(NamedTuple):
    """Action parameters of the acting pathway, corrected."""

    params: Float[Tensor, "batch _"]
    """Means; for Discrete log-probabilities, up to a constant."""
    log_std: Float[Tensor, "batch actions"] | None = None
    """Logarithms of the standard deviations; none for Discrete."""
    std: Float[Tensor, "batch actions"] | None = None


class Choice(NamedTuple):
    """Pathway and action of a step, row by row, and what they were drawn from."""

    acted: Int[Tensor, " batch"]
    selected_output: Float[Tensor, "batch outputs"]
    """Own output of the source that acts; undefined where the fresh pathway acts."""
    actions: Tensor
    params: ActingParams
    transition: Float[Tensor, "batch pathways"]
    """Log-probabilities of the next pathway."""
    stayed: Float[Tensor, "batch pathways"] | None
    """One at the previous pathway; none where no commitment is learned."""
    fresh: Bool[Tensor, "batch 1"]
    """Rows in which the fresh pathway acts."""
    solo: Bool[Tensor, "batch 1"] | None
    """Rows of solo episodes, in which the pathway acts with certainty and without correction; none
    where no arms are judged."""


class Computed(NamedTuple):
    """Intermediate results of a step, for its gradients."""

    choice: Choice
    routed: Routed
    hidden: Sequence[Sequence[Float[Tensor, "batch _"]]]
    """Input and hidden layers of critic, actor and, where the head has one, router."""
    scaled: Float[Tensor, "batch _"]
    """Distances of actions from their means, in standard deviations; or log-probabilities of
    discrete actions."""
    precision: Float[Tensor, "batch actions"] | None
    """One over the standard deviations; none for Discrete."""


class PolicyStep(NamedTuple):
    """A step of the policy, row by row."""

    choice: Choice
    values: Float[Tensor, "batch 1"]
    log_prob: Float[Tensor, " batch"]
    computed: Computed


PredictState = tuple[np.ndarray, ...]
"""State of SB3's `predict`: committed pathways, and their steps so far."""


class CommitmentState:
    """Committed pathway of each environment, and its steps so far."""

    def __init__(self, n_envs: int) -> None:
        self.pathway: Int[np.ndarray, " envs"] = np.full(n_envs, -1)
        self.steps: Int[np.ndarray, " envs"] = np.zeros(n_envs, dtype=np.int64)

    @classmethod
    def restored(
        cls, n_rows: int, state: PredictState | None, episode_start: np.ndarray | None
    ) -> "CommitmentState":
        """Commitments from the state that the last `predict` returned.

        Raises:
            BadConfig: If the state is of another number of observations.
        """
        restored = cls(n_rows)
        if state is not None:
            restored.pathway, restored.steps = map(np.asarray, state)
            if len(restored.pathway) != n_rows:
                raise BadConfig(
                    f"A state for {len(restored.pathway)} observations was given with {n_rows}; "
                    "pass state=None where other episodes begin."
                )
        if episode_start is not None:
            restored.end(np.asarray(episode_start, dtype=bool))
        return restored

    def end(self, rows: Bool[np.ndarray, " envs"]) -> None:
        """End the commitments of some environments."""
        self.pathway = np.where(rows, -1, self.pathway)

    def advance(self, acted: Int[Tensor, " envs"], previous: Int[np.ndarray, " envs"]) -> None:
        """Count a step of the pathways that acted; `previous` is -1 where none was committed."""
        self.steps = np.where(previous >= 0, self.steps + 1, 1)
        self.pathway = acted.cpu().numpy()

    def commit(self, pathway: int) -> None:
        """Begin a commitment to one pathway in every environment."""
        self.pathway, self.steps = np.full_like(self.pathway, pathway), np.ones_like(self.steps)

    @property
    def predict_state(self) -> PredictState:
        """State that `predict` returns."""
        return self.pathway, self.steps

    def binding(self, at_most: float | None) -> Int[np.ndarray, " envs"]:
        """Committed pathways of the next step, -1 for none or after `at_most` steps."""
        return (
            self.pathway if at_most is None else np.where(self.steps >= at_most, -1, self.pathway)
        )


class RolloutCommitments:
    """Commitments and solo episodes of the environments of a rollout."""

    def __init__(self) -> None:
        self._state: CommitmentState | None = None
        self._bound: Int[np.ndarray, " envs"] | None = None
        """Previous pathways of the step that goes on."""
        self.some_fresh = False
        """Whether the fresh pathway played a solo episode in this rollout."""

    def end(self, ended: Bool[np.ndarray, " envs"]) -> None:
        """End the commitments of environments whose episode ended."""
        if self._state is not None:
            self._state.end(ended)

    def bind(
        self,
        context: StepContext,
        playing: Int[np.ndarray, " envs"] | None,
        most_steps: float | None,
        fresh_index: int,
    ) -> None:
        """Set `previous` and `only_fresh` of a step.

        Args:
            context: The step's inputs.
            playing: Pathway of each environment's solo episode, -1 for none; None without
                selection among arms.
            most_steps: Steps after which a commitment always ends, if there are such.
            fresh_index: Position of the fresh pathway.
        """
        if self._state is None or len(self._state.pathway) != context.n_rows:
            self._state = CommitmentState(context.n_rows)
        bound = self._state.binding(most_steps)
        if playing is not None and len(playing) == len(bound):
            bound = np.where(playing >= 0, encode_solo(playing), bound)
            fresh = bound == encode_solo(fresh_index)
            context.only_fresh = bool(fresh.all())
            self.some_fresh |= bool(fresh.any())
        self._bound, context.previous = bound, torch.as_tensor(bound, device=context.device)

    def advance(self, context: StepContext) -> None:
        """Count a step of the pathways that acted."""
        bound, self._bound = self._bound, None
        if self._state is not None and context.acted is not None and bound is not None:
            self._state.advance(context.acted, bound)
