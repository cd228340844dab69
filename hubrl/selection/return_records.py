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
        window: Returns kept of each arm that learns, unless they are added with `keep`.
    """

    def __init__(self, names: Sequence[str], learning: Collection[str], window: int) -> None:
        super().__init__()
        self.names = list(names)
        self.base_windows = [window if name in learning else CAPACITY for name in names]
        self.register_buffer("values", torch.zeros(len(self.names), CAPACITY, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(self.names), dtype=torch.long))
        self.register_buffer("windows", torch.tensor(self.base_windows))

    def add(self, arm: int, value: float, *, keep: bool = False) -> None:
        """Record one return.

        Args:
            arm: Position of the arm.
            value: The return.
            keep: Whether older returns stay on record beside it, where an arm no longer changes
                much.
        """
        values, counts, windows = (
            self.get_buffer(name) for name in ("values", "counts", "windows")
        )
        kept = self.count(arm)
        if keep and kept == int(windows[arm]) < CAPACITY:
            windows[arm] += 1
            counts[arm] = kept
        values[arm, int(counts[arm]) % int(windows[arm])] = value
        counts[arm] += 1

    def restore_windows(self) -> None:
        """A training begins: arms change again."""
        for arm, window in enumerate(self.base_windows):
            self.get_buffer("counts")[arm] = min(self.count(arm), window)
            self.get_buffer("windows")[arm] = window

    def forget(self, arm: int) -> None:
        """Clear the record of an arm."""
        self.get_buffer("counts")[arm] = 0
        self.get_buffer("windows")[arm] = self.base_windows[arm]

    def count(self, arm: int) -> int:
        """Returns on record of an arm."""
        return min(int(self.get_buffer("counts")[arm]), int(self.get_buffer("windows")[arm]))

    def returns(self, arm: int) -> list[float]:
        """The returns on record of an arm, in no particular order."""
        kept: list[float] = self.get_buffer("values")[arm, : self.count(arm)].tolist()
        return kept

    def mean_return(self, arm: int) -> float:
        """Mean of the returns on record; NaN without any."""
        returns = self.returns(arm)
        return sum(returns) / len(returns) if returns else math.nan
