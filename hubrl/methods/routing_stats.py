"""Routing statistics for logs."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.nn.losses import entropy_nats


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
    def sums(self) -> "RoutingSums":
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
