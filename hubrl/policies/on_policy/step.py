"""One step of a policy over sources' outputs: its inputs, its record, and the state of the training around it."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hubrl.sources.preprocessing import Observations

Rows = TypeVar("Rows", int, Tensor, np.ndarray)

SOLO_CODE = -2
"""Values of at most this, in place of the previous pathway, name the pathway that plays the episode
alone."""


def encode_solo(pathway: Rows) -> Rows:
    """Code of a pathway that plays an episode alone; and of a code its pathway."""
    return SOLO_CODE - pathway


@dataclass(frozen=True)
class TrainingState:
    """What a training tells a policy, once a rollout; the default stands for no training."""

    progress_remaining: float = 1.0
    """Share of the training that is still to come."""
    records_steps: bool = False
    """Whether a rollout buffer stores a record of each step and yields it with each minibatch
    (`RecordedBatch`)."""
    critic_only: bool = False
    """Whether only the critic learns, so that the actor waits until advantages mean something."""
    fused_update: bool = False
    """Whether PPO's own loop calls, in which weights change while an update lasts and then alone.

    Small parameters are then stepped together (`hubrl.nn.parameter_packing`).
    """
    entropy_gradient: bool = True
    """Whether the algorithm may ask for the entropy's gradient."""


@dataclass(frozen=True)
class StepRecord:
    """Tensors that an update needs of a step beside what SB3 stores, row by row; none where there is nothing to store."""

    previous: Int[Tensor, " batch"] | None = None
    """The pathway that acted before, as far as it binds; -1 for none, see also `encode_solo`."""
    acted: Int[Tensor, " batch"] | None = None
    """The pathway that acted."""
    noise: Float[Tensor, "batch pathways"] | None = None
    """The router's noise."""
    source_outputs: Float[Tensor, "batch sources outputs"] | None = None
    """Outputs of all sources."""
    selected_output: Float[Tensor, "batch outputs"] | None = None
    """The output of the source that acted."""
    deterministic: Bool[Tensor, " batch"] | None = None
    """Where the action was without noise."""

    def tensors(self) -> dict[str, Tensor]:
        """All that is recorded, by name."""
        named = ((name, getattr(self, name)) for name in RECORDED)
        return {name: tensor for name, tensor in named if tensor is not None}


RECORDED = tuple(field.name for field in fields(StepRecord))


@dataclass(frozen=True)
class RecordedBatch:
    """A minibatch's observations with the record of their steps; both stand in SB3's field `observations`."""

    observations: Any
    record: StepRecord


@dataclass
class StepContext:
    """Inputs of an action distribution."""

    observations: Observations
    exploring: bool
    """Whether the router's noise is on."""
    source_outputs: Float[Tensor, "batch sources outputs"] | None = None
    """Outputs of all sources, where they are known."""
    selected_output: Float[Tensor, "batch outputs"] | None = None
    """The output of the source that acted, where it is known."""
    previous: Int[Tensor, " batch"] | None = None
    """The pathway that acted before; -1 where none binds."""
    acted: Int[Tensor, " batch"] | None = None
    """The pathway that acted, where it is drawn or known already."""
    deterministic: Bool[Tensor, " batch"] | None = None
    """Where a rollout's action is to be without noise."""
    noise: Float[Tensor, "batch pathways"] | None = None
    """The router's noise, where it is known."""
    only_fresh: bool | None = None
    """Whether the fresh pathway plays alone in all rows; none where it was not looked at."""
    critic_only: bool = False
    """Whether only the critic learns, so that no loss of routing counts."""

    @classmethod
    def of_record(
        cls, observations: Observations, record: StepRecord, *, exploring: bool, critic_only: bool
    ) -> "StepContext":
        """The inputs of a recorded step, for its update."""
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
        """The record of a step that is done."""
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
        """Rows in which a pathway plays its episode alone; none where nothing is known of what acted before."""
        return None if self.previous is None else self.previous <= SOLO_CODE
