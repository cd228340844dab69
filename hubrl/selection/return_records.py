"""Returns of every arm on the target, saved with the model."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import nn

CAPACITY = 500
"""Returns kept of an arm that does not change; enough that its mean no longer moves."""


class ReturnRecords(nn.Module):
    """The latest returns of each arm: all of an arm that is fixed, a window of one that learns.

    Args:
        names: Names of the arms.
        learning: Names of those that change while training goes on.
        window: Returns kept of each arm that learns.
    """

    def __init__(self, names: Sequence[str], learning: Collection[str], window: int) -> None:
        super().__init__()
        self.names = list(names)
        self.windows = [window if name in learning else CAPACITY for name in names]
        self.register_buffer("values", torch.zeros(len(self.names), max(self.windows, default=1), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(self.names), dtype=torch.long))

    def add(self, arm: int, value: float) -> None:
        """Record one return."""
        values, counts = self.get_buffer("values"), self.get_buffer("counts")
        values[arm, int(counts[arm]) % self.windows[arm]] = value
        counts[arm] += 1

    def forget(self, arm: int) -> None:
        """Clear the record of an arm."""
        self.get_buffer("counts")[arm] = 0

    def count(self, arm: int) -> int:
        """Returns on record of an arm."""
        return min(int(self.get_buffer("counts")[arm]), self.windows[arm])

    def returns(self, arm: int) -> list[float]:
        """The returns on record of an arm, in no particular order."""
        kept: list[float] = self.get_buffer("values")[arm, : self.count(arm)].tolist()
        return kept

    def mean_return(self, arm: int) -> float:
        """Mean of the returns on record; NaN without any."""
        returns = self.returns(arm)
        return sum(returns) / len(returns) if returns else math.nan
