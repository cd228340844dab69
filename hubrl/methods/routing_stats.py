"""Statistics of what a method routed, for logs."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.nn.losses import entropy_nats


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
