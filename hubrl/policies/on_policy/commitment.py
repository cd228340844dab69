"""Commitment: a drawn pathway acts for several steps."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.routing.weights import index_mask

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


def transition_log_probs(
    log_weights: Float[Tensor, "batch pathways"],
    previous: Int[Tensor, " batch"],
    stay_logit: Float[Tensor, "batch pathways"] | None = None,
) -> Float[Tensor, "batch pathways"]:
    """Log-probabilities of the next pathway given the previous one.

    Each pathway's stay logit `c_i` is added where it acted: `p = softmax(log w + c [i =
    previous])`; without one, the previous pathway acts again with certainty. Where none acted
    before, `p = w`. A commitment ends when its pathway is no longer active. The rule has no paper.

    Args:
        log_weights: Logarithms of pathway weights; minus infinity where a pathway is not active.
        previous: The previous pathway; below 0 for none.
        stay_logit: Of each pathway, in nats; none for infinity.
    """
    there = index_mask(previous, log_weights.shape[1])
    if stay_logit is not None:
        return functional.log_softmax(log_weights + there * stay_logit, dim=1)
    there = there & log_weights.isfinite()
    certain = torch.zeros_like(log_weights).masked_fill(~there, -torch.inf)
    return torch.where(there.any(dim=1, keepdim=True), certain, log_weights)


def certain_log_weights(
    pathway: Int[Tensor, " batch"], n_pathways: int
) -> Float[Tensor, "batch pathways"]:
    """Logarithms of pathway weights: 0 for one pathway per row, minus infinity for the rest."""
    logs = torch.full((len(pathway), n_pathways), -torch.inf, device=pathway.device)
    return logs.masked_fill(index_mask(pathway, n_pathways), 0.0)
