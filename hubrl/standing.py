"""What the pathways have earned on the target, and who is clearly worse than the best.

The design is ours. Every pathway has a record of its last returns. Those that are clearly worse than the best (by two
standard errors of the difference unless told otherwise) are out of favour; the learner is in the race like any other, so that
it overtakes its sources when it earns more, and not before.
"""

import math
from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.evidence import DISTRUST, STANDARD_ERRORS, Returns, behind, errors_behind
from hubrl.pathways import FRESH

ENOUGH = 3
"""Returns that a pathway must have before it is judged."""

STEADY = 500
"""Returns that are remembered of a pathway that does not change."""


def starting_points(returns: Returns, trusted: Collection[str], doubted: Collection[str] = ()) -> dict[str, float]:
    """Where the router starts for each pathway, once it is known whom to trust.

    Each trusted source starts as much lower as it is standard errors behind the best of them, but not below the fresh pathway,
    which starts low beside them and first without any. Who is in doubt starts low.
    """
    lag = errors_behind({name: returns[name] for name in trusted}) if trusted else {}
    start = {name: -min(lag.get(name, 0.0), DISTRUST) for name in returns}
    low = {*doubted, *([FRESH] if trusted and FRESH in returns else [])}
    return {name: -DISTRUST if name in low else value for name, value in start.items()}


class Standing(nn.Module):
    """The last returns of every pathway, saved with the model.

    Args:
        names: The pathways' names.
        window: How many returns are remembered of each.
        steady: Those that do not change as training goes on, of which `STEADY` are.
        enough: Returns that a pathway must have before it is judged.
        errors: Standard errors by which a pathway must be behind to be out of favour.
    """

    def __init__(
        self,
        names: list[str],
        window: int = 20,
        steady: Collection[str] = (),
        *,
        enough: int = ENOUGH,
        errors: float = STANDARD_ERRORS,
    ) -> None:
        super().__init__()
        self.names, self.enough, self.errors = names, enough, errors
        self.windows = [STEADY if name in steady else window for name in names]
        self.register_buffer("returns", torch.zeros(len(names), max(self.windows), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(names), dtype=torch.long))

    def note(self, pathway: int, earned: float) -> None:
        """A pathway played an episode."""
        returns, counts = self.get_buffer("returns"), self.get_buffer("counts")
        returns[pathway, int(counts[pathway]) % self.windows[pathway]] = earned
        counts[pathway] += 1

    def forget(self, pathway: int) -> None:
        """What a pathway earned counts no more."""
        self.get_buffer("counts")[pathway] = 0

    def of(self, pathway: int) -> list[float]:
        """The remembered returns of a pathway."""
        played = min(int(self.get_buffer("counts")[pathway]), self.windows[pathway])
        remembered: list[float] = self.get_buffer("returns")[pathway, :played].tolist()
        return remembered

    @property
    def worth(self) -> Float[Tensor, " pathways"]:
        """Mean remembered return of every pathway; NaN of those that never played."""
        means = [sum(returns) / len(returns) if returns else math.nan for returns in map(self.of, range(len(self.names)))]
        return torch.tensor(means, dtype=torch.float64)

    @property
    def best(self) -> int:
        """The pathway that earns most, of those that played enough to say so; otherwise of those that played; else the last."""
        most = self.most(range(len(self.names)))
        return len(self.names) - 1 if most is None else most

    def most(self, among: Collection[int]) -> int | None:
        """Who earns most of some, see `best`; nobody if none of them played."""
        counts: list[int] = self.get_buffer("counts").tolist()
        worth: list[float] = self.worth.tolist()
        for enough in (self.enough, 1):
            played = [index for index in among if counts[index] >= enough]
            if played:
                return max(played, key=lambda index: worth[index])
        return None

    @property
    def acting(self) -> int:
        """The pathway that acts in evaluations: the source that earns most, or the learner once it clearly earns more.

        By two standard errors: what changes is judged by few episodes, and the best of several by the luckiest of them.
        """
        learner = len(self.names) - 1
        best = self.most(range(learner))
        if best is None:
            return self.best
        judged = int(self.get_buffer("counts")[learner]) >= self.enough
        return learner if judged and behind(self.of(best), self.of(learner)) > STANDARD_ERRORS else best

    @property
    def in_favour(self) -> list[int]:
        """The pathways that are not clearly worse than the best, or not judged yet."""
        best = self.of(self.best)
        counts = self.get_buffer("counts")
        return [
            index for index in range(len(self.names)) if int(counts[index]) < self.enough or behind(self.of(index), best) <= self.errors
        ]

    def gap(self, pathway: int, other: int) -> float:
        """How much less a pathway earns than another, from 0 (not less) to 1 (nothing of it yet).

        In units of what the other earns above the worst return on record; 1 while the pathway was not judged.
        """
        worth, counts = self.worth, self.get_buffer("counts")
        if int(counts[other]) < self.enough:
            return 0.0
        if int(counts[pathway]) < self.enough:
            return 1.0
        worst = min(value for index in range(len(self.names)) for value in self.of(index))
        scale = float(worth[other]) - worst
        return min(max(float(worth[other] - worth[pathway]) / max(scale, 1e-8), 0.0), 1.0)
