"""What the pathways have earned on the target, and who is clearly worse than the best.

The design is ours. Every pathway has a record of its last returns. Those that are clearly worse than the best (by two
standard errors of the difference, as in a probe) are out of favour; the learner is in the race like any other, so that
it overtakes its sources when it earns more, and not before.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hubrl.pathways import FRESH

STANDARD_ERRORS = 2.0
"""Within which a pathway is in favour, or trusted after a probe."""

RACE_ERRORS = 3.0
"""Within which a pathway stays in a race; it is looked at after every round, so that two would be exceeded by chance."""

MOST_BEHIND = 6.0
"""Standard errors beyond which it does not matter how far a pathway is behind: its weight is gone."""

Returns = dict[str, list[float]]

ENOUGH = 3
"""Returns that a pathway must have before it is judged."""

JUDGING = 0.2
"""Share of the training within which sources play alone until they are judged."""


def behind(one: Sequence[float], other: Sequence[float]) -> float:
    """By how many standard errors the mean of one sample lies below that of another (Welch).

    Zero when the means are equal or either sample has fewer than two members; infinite when neither varies.
    """
    if min(len(one), len(other)) < 2:
        return 0.0
    gap = float(np.mean(other) - np.mean(one))
    error = math.sqrt(np.var(one, ddof=1) / len(one) + np.var(other, ddof=1) / len(other))
    if error == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / error


def errors_behind(returns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By how many standard errors each pathway lies behind the one with the greatest mean."""
    best = max(returns, key=lambda name: float(np.mean(returns[name])) if returns[name] else -math.inf)
    return {name: behind(returns[name], returns[best]) for name in returns}


def still_racing(returns: Mapping[str, Sequence[float]], errors: float = RACE_ERRORS) -> list[str]:
    """The pathways that are not clearly worse than the best; in the order given."""
    return [name for name, lag in errors_behind(returns).items() if lag <= errors]


class Standing(nn.Module):
    """The last returns of every pathway, saved with the model.

    Args:
        names: The pathways' names.
        window: How many returns are remembered of each.
    """

    def __init__(self, names: list[str], window: int = 20) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("returns", torch.zeros(len(names), window, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(names), dtype=torch.long))

    def note(self, pathway: int, earned: float) -> None:
        """A pathway played an episode."""
        returns, counts = self.get_buffer("returns"), self.get_buffer("counts")
        returns[pathway, int(counts[pathway]) % returns.shape[1]] = earned
        counts[pathway] += 1

    def of(self, pathway: int) -> list[float]:
        """The remembered returns of a pathway."""
        played = int(self.get_buffer("counts")[pathway])
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
        worth = self.worth
        judged = torch.where(self.get_buffer("counts") >= ENOUGH, worth, math.nan)
        for candidates in (judged, worth):
            if not candidates.isnan().all():
                return int(candidates.nan_to_num(nan=-math.inf).argmax())
        return len(self.names) - 1

    @property
    def in_favour(self) -> list[int]:
        """The pathways that are not clearly worse than the best, or not judged yet."""
        best = self.of(self.best)
        counts = self.get_buffer("counts")
        return [index for index in range(len(self.names)) if int(counts[index]) < ENOUGH or behind(self.of(index), best) <= STANDARD_ERRORS]

    def gap(self, pathway: int, other: int) -> float:
        """How much less a pathway earns than another, from 0 (not less) to 1 (nothing of it yet).

        In units of what the other earns above the worst return on record; 1 while the pathway was not judged.
        """
        worth, counts = self.worth, self.get_buffer("counts")
        if int(counts[other]) < ENOUGH:
            return 0.0
        if int(counts[pathway]) < ENOUGH:
            return 1.0
        worst = min(value for index in range(len(self.names)) for value in self.of(index))
        scale = float(worth[other]) - worst
        return min(max(float(worth[other] - worth[pathway]) / max(scale, 1e-8), 0.0), 1.0)


class Solos(nn.Module):
    """Whole episodes that one pathway plays alone in training, and what they say of it [ours].

    Pathways that share an episode share its return; only alone each earns its own. After a probe every episode is played alone, until each
    source has played enough to be judged: a mixture of gaits that were not compared yet earns less than any of them. From then on some
    are, and who is next is drawn by `exp(-lag / 2)`, so that those that are known to be worse cost little; `lag` is what a probe
    believed, until a pathway is judged.

    Args:
        names: The pathways' names.
        share: Share of the episodes once the sources are judged, at the start of the training; it falls to zero with what remains of it.
    """

    def __init__(self, names: list[str], share: float) -> None:
        super().__init__()
        self.share = share
        self.remaining = 1.0
        """Share of the training that is still to come; a callback sees to it."""
        self.standing = Standing(names)
        self.register_buffer("lag", torch.zeros(len(names)))
        self.register_buffer("believes", torch.zeros((), dtype=torch.bool))
        self.playing: Int[Tensor, " envs"] = torch.full((0,), -1)

    def believe(self, start: Sequence[float]) -> None:
        """Take over where a probe lets the router start."""
        numbers = torch.as_tensor(list(start), dtype=torch.float32)
        self.get_buffer("lag").copy_((numbers.max() - numbers).clamp_max(MOST_BEHIND))
        self.get_buffer("believes").fill_(True)

    def begin(self, n_envs: int, trusted: Sequence[bool]) -> None:
        """Choose who plays alone in each of some environments, whose episodes begin."""
        self.playing = torch.full((n_envs,), -1)
        for env in range(n_envs):
            self.playing[env] = self._draw(trusted)

    def ended(self, env: int, earned: float, trusted: Sequence[bool]) -> None:
        """An episode ended: remember what it earned if one pathway played it, and choose the next."""
        if int(self.playing[env]) >= 0:
            self.standing.note(int(self.playing[env]), earned)
        self.playing[env] = -1
        self.playing[env] = self._draw(trusted)

    def revised(self, trusted: Sequence[bool]) -> Float[Tensor, " pathways"]:
        """By how much more than was believed each trusted pathway lies behind the best, in standard errors.

        All zero until two of them have played enough; no pathway counts as more than `MOST_BEHIND` behind.
        """
        counts, old = self.standing.get_buffer("counts"), self.get_buffer("lag")
        judged = [index for index, stays in enumerate(trusted) if stays and int(counts[index]) >= ENOUGH]
        new = old.clone()
        if len(judged) > 1:
            behind_best = errors_behind({self.standing.names[index]: self.standing.of(index) for index in judged})
            for index in judged:
                new[index] = min(max(behind_best[self.standing.names[index]], 0.0), MOST_BEHIND)
        change = new - old
        old.copy_(new)
        return change

    def _draw(self, trusted: Sequence[bool]) -> int:
        """Who plays the next episode alone; -1 for nobody, as always without a probe, when the fresh pathway may be as good as any."""
        if not bool(self.get_buffer("believes")):
            return -1
        members = [index for index, stays in enumerate(trusted) if stays]
        first = self._unjudged(members)
        if first is not None and self.remaining > 1 - JUDGING:
            return first
        if np.random.random() >= self.share * self.remaining:
            return -1
        chances = np.exp(-self.get_buffer("lag").double().cpu().numpy()[members] / 2)
        return int(np.random.choice(members, p=chances / chances.sum()))

    def _unjudged(self, members: Sequence[int]) -> int | None:
        """The source that has played least, with what is being played, if that is not enough yet; not if there is but one."""
        sources = [index for index in members if self.standing.names[index] != FRESH]
        counts = self.standing.get_buffer("counts")
        played = {index: int(counts[index]) + int((self.playing == index).sum()) for index in sources}
        if len(sources) < 2 or min(played.values()) >= ENOUGH:
            return None
        return min(played, key=lambda index: played[index])
