"""One step of a policy over sources' outputs: inputs, record, and state of the training."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    records_steps: bool = False
    """Whether a rollout buffer stores a record of each step and yields it with each minibatch
    (`RecordedBatch`)."""
    critic_only: bool = False
    """Whether only the critic learns, as long as advantages are not yet reliable."""
    fused_update: bool = False
    """Whether PPO's own loop runs the update, in which alone parameters change, so that small ones
    may be packed and stepped together (`hubrl.nn.parameter_packing`)."""
    entropy_gradient: bool = True
    """Whether the algorithm may use the gradient of the entropy."""


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
        named = ((name, getattr(self, name)) for name in RECORDED)
        return {name: tensor for name, tensor in named if tensor is not None}


RECORDED = tuple(field.name for field in fields(StepRecord))


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
    only_fresh: bool | None = None
    """Whether the fresh pathway plays alone in all rows; none until computed."""
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
        return len(
            next(iter(self.observations.values()))
            if isinstance(self.observations, dict)
            else self.observations
        )

    @property
    def solo(self) -> Bool[Tensor, " batch"] | None:
        """Rows of solo episodes; none where the previous pathway is unknown."""
        return None if self.previous is None else self.previous <= SOLO_CODE
