"""The fresh pathway's trial: would it come further than the hub by the end of the training?

A hub of good sources leaves the fresh pathway almost no data. That is right where they are far
better than what the budget allows to learn, and wrong where they are poor and the training is long.
So the fresh pathway trains alone for a share of the training, and a line through its returns is
extended: explore-then-commit on arms whose reward rises as they are played (rising rested bandits,
Metelli et al. 2022); the rule itself is hubrl's.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hubrl.selection.settings import TrustSettings
from hubrl.selection.statistics import extrapolate_return

FORECAST_EPISODES = 8
"""Fewest episodes through which a line is drawn."""

CAPACITY = 256
"""Latest episodes on record."""


class Phase(IntEnum):
    """Who plays the episodes from which the training learns."""

    DOUBT = 0
    """No source is known to be better than an untrained network: the fresh pathway, until whole
    episodes show one."""
    HUB = 1
    """The hub; the fresh pathway's trial is still to come."""
    TRIAL = 2
    """The fresh pathway, to show how fast it learns."""
    SETTLED = 3
    """The hub, to the end."""
    ALONE = 4
    """The fresh pathway, to the end."""


class Curve(nn.Module):
    """Time and return of the latest episodes, saved with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(CAPACITY, 2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def add(self, when: int, value: float) -> None:
        """Record one episode."""
        rows, count = self.get_buffer("rows"), self.get_buffer("count")
        rows[int(count) % CAPACITY] = torch.tensor([when, value], dtype=torch.float64)
        count += 1

    def forget(self) -> None:
        """Clear the record."""
        self.get_buffer("count").zero_()

    def __len__(self) -> int:
        return min(int(self.get_buffer("count")), CAPACITY)

    @property
    def latest(self) -> Float[np.ndarray, "episodes 2"]:
        """Time and return, in the order in which the episodes ended."""
        rows, count = self.get_buffer("rows"), int(self.get_buffer("count"))
        kept: np.ndarray = (
            (rows.roll(-(count % CAPACITY), 0) if count > CAPACITY else rows[:count]).cpu().numpy()
        )
        return kept


class FreshTrial(nn.Module):
    """Phases of the training around the fresh pathway's trial.

    Times are environment steps over all environments.

    Args:
        settings: `judged_by`, `trial_share` and `rise` are used.
    """

    def __init__(self, settings: TrustSettings) -> None:
        super().__init__()
        self.settings = settings
        self.hub, self.fresh = Curve(), Curve()
        self.register_buffer("phase", torch.tensor(int(Phase.HUB)))
        self.register_buffer("until", torch.zeros((), dtype=torch.float64))
        self.register_buffer("swapped", torch.zeros((), dtype=torch.bool))
        self.register_buffer("forecast", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("has_forecast", torch.zeros((), dtype=torch.bool))

    @property
    def at(self) -> Phase:
        """The phase now."""
        return Phase(int(self.get_buffer("phase")))

    def go(self, phase: Phase) -> Phase:
        """Enter a phase, which is returned."""
        self.get_buffer("phase").fill_(int(phase))
        self.get_buffer("swapped").fill_(
            phase is Phase.TRIAL or (phase is Phase.ALONE and self.is_swapped)
        )
        return phase

    @property
    def forecasts(self) -> tuple[float, float]:
        """Returns expected at the end, of the fresh pathway and of the hub; NaN before a trial."""
        ahead, behind = (
            self.get_buffer("forecast").where(self.get_buffer("has_forecast"), torch.nan).tolist()
        )
        return ahead, behind

    @property
    def is_swapped(self) -> bool:
        """Whether an actor-critic of its own trains for the fresh pathway, beside the hub's."""
        return bool(self.get_buffer("swapped"))

    @property
    def fresh_claims(self) -> bool:
        """Whether episodes of learning are the fresh pathway's."""
        return self.at in (Phase.DOUBT, Phase.TRIAL, Phase.ALONE)

    def begin(self) -> None:
        """Begin a training at step 0: an unfinished trial is to come again."""
        if self.at is Phase.TRIAL:
            self.go(Phase.HUB)
        self.hub.forget()
        self.fresh.forget()

    def add(self, now: int, value: float, *, fresh: bool) -> None:
        """Record an episode of learning, of the hub or of the fresh pathway in its trial."""
        if fresh and self.at is Phase.TRIAL:
            self.fresh.add(now, value)
        elif not fresh and self.at is Phase.HUB:
            self.hub.add(now, value)

    def advance(
        self,
        now: int,
        total: int,
        *,
        n_sources: int,
        round_steps: float,
        alternatives: Sequence[float],
    ) -> Phase | None:
        """Enter the next phase if it is time to; None otherwise.

        Args:
            now: Environment steps so far.
            total: Environment steps of the whole training.
            n_sources: Sources left in the hub.
            round_steps: Environment steps of one episode in every environment; a trial needs room
                for two.
            alternatives: Mean returns of arms that could act in place of the hub as it plays.
        """
        if self.at is Phase.HUB:
            # Several sources first learn to combine.
            start = self.settings.judged_by * total if n_sources > 1 else 0.0
            if now < start or len(self.hub) < FORECAST_EPISODES:
                return None
            length = self.settings.trial_share * total
            fits = 2 * round_steps <= length and now + length < total
            self.get_buffer("until").fill_(now + length)
            self.fresh.forget()
            return self.go(Phase.TRIAL if fits else Phase.SETTLED)
        if self.at is Phase.TRIAL:
            return self._end_trial(now, total, n_sources, alternatives)
        return None

    def _end_trial(
        self, now: int, total: int, n_sources: int, alternatives: Sequence[float]
    ) -> Phase | None:
        """End the trial where it is over, or half over and the fresh pathway is clearly too slow.

        The fresh pathway goes on alone if it is expected to earn more at the end than the hub, by
        `episode_errors`.
        """
        until, length = float(self.get_buffer("until")), self.settings.trial_share * total
        if now < until - length / 2:
            return None
        is_over, fresh = now >= until, self.fresh.latest
        if len(fresh) < FORECAST_EPISODES:
            return self.go(Phase.SETTLED) if is_over else None
        horizon = min(until + self.settings.rise * length, float(total))
        ahead, error = extrapolate_return(fresh[:, 0], fresh[:, 1], horizon)
        behind = self._expected_of_hub(total, n_sources, alternatives)
        margin = self.settings.episode_errors * error
        if not is_over and ahead + margin > behind:
            return None
        self.get_buffer("forecast").copy_(torch.tensor([ahead, behind]))
        self.get_buffer("has_forecast").fill_(True)
        is_ahead = ahead - margin > behind
        return self.go(Phase.ALONE if is_over and is_ahead else Phase.SETTLED)

    def _expected_of_hub(self, total: int, n_sources: int, alternatives: Sequence[float]) -> float:
        hub = self.hub.latest
        expected = max([float(hub[-FORECAST_EPISODES:, 1].mean()), *alternatives])
        if n_sources == 1:
            # There is nobody to combine it with: its correction is soon learned, and the hub's line
            # levels off.
            return expected
        later = hub[len(hub) // 2 :]
        return max(expected, extrapolate_return(later[:, 0], later[:, 1], float(total))[0])

    def explained(self, before: Phase) -> str:
        """Why the phase that followed `before` was entered, in a sentence."""
        if self.at is Phase.TRIAL:
            return "The fresh pathway trains alone for a while, to show how fast it learns."
        if before is Phase.HUB:
            return "There is no room for a trial of the fresh pathway; the hub plays to the end."
        ahead, behind = self.forecasts
        goes_on = (
            "the fresh pathway trains alone to the end"
            if self.at is Phase.ALONE
            else "the hub plays to the end"
        )
        if np.isnan(ahead):
            return f"Too few episodes of the fresh pathway ended in its trial: {goes_on}."
        expected = f"the fresh pathway is expected to earn {ahead:.4g}, the hub {behind:.4g}"
        unclear = self.at is Phase.SETTLED and ahead > behind
        doubt = ", which is not clearly more" if unclear else ""
        return f"By the end {expected}{doubt}: {goes_on}."
