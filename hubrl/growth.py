"""Whether the fresh pathway, training alone, would come further than the hub: a trial, a forecast, one decision.

The design is ours. A source that is good from the start keeps the fresh pathway from learning, because nearly all
data are its own. That is right where it is far better than what the budget allows to learn, and wrong where the training goes
on for long. So the fresh pathway gets a share of the training for itself; the line of what it earned is extended to the
end of the training and compared with the hub's. If it leads higher, the fresh pathway goes on alone. The hub acts in evaluations
meanwhile, until the fresh pathway, without its noise, clearly earns more; then the sources are dropped for good.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hubrl.evidence import RACE_ERRORS, behind, forecast


class Phase(IntEnum):
    """Where the comparison of hub and fresh pathway is."""

    HUB = 0
    """The hub plays; the trial is still to come."""
    TRIAL = 1
    """The fresh pathway plays alone, to show how fast it learns."""
    SETTLED = 2
    """The hub goes on to the end."""
    ALONE = 3
    """The fresh pathway goes on alone; the hub acts in evaluations."""
    OVERTAKEN = 4
    """The fresh pathway earns more than the hub, whose sources may be dropped."""


FROM = {True: 0.05, False: 0.25}
"""Share of the training before the trial: with one source, which has nobody to be combined with, and with several."""

EACH = 2
"""Episodes that a trial must have room for in every environment; without, no line can be seen, and none is held."""

TIMES = {True: 2.0, False: 1.0}
"""How many times its share a trial lasts: with one source, beside which there is little else to learn, and with several."""

FEWEST = 8
"""Episodes that a forecast must rest on."""

NEARLY_OVER = 0.9
"""Share of the training after which the fresh pathway overtakes a hub that earns less at all, and not only one that clearly does."""

SHOWN = 5
"""Latest episodes without noise by which the fresh pathway is judged."""

SHOW_EVERY = 8
"""Of so many episodes one is played without noise, to judge who plays it; the actor does not learn from it."""

REMEMBERED = 256
"""Latest episodes of which each record is made."""


class Record(nn.Module):
    """The latest episodes of one kind: when each ended and what it earned, saved with the model."""

    def __init__(self, size: int = REMEMBERED) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, 2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def note(self, when: float, earned: float) -> None:
        """An episode ended."""
        rows, count = self.get_buffer("rows"), self.get_buffer("count")
        rows[int(count) % len(rows)] = torch.tensor([when, earned], dtype=torch.float64)
        count += 1

    def forget(self) -> None:
        """No episode counts any more."""
        self.get_buffer("count").zero_()

    def __len__(self) -> int:
        return min(int(self.get_buffer("count")), len(self.get_buffer("rows")))

    @property
    def latest(self) -> Float[np.ndarray, "episodes 2"]:
        """When and what, in the order in which they ended."""
        rows, count = self.get_buffer("rows"), int(self.get_buffer("count"))
        kept: np.ndarray = rows.roll(-(count % len(rows)), 0).cpu().numpy() if count > len(rows) else rows[:count].cpu().numpy()
        return kept


class Growth(nn.Module):
    """The trial of a fresh pathway, and what follows from it.

    Time is counted in shares of the training: 0.1 is a tenth of its environment steps, over all parallel environments.

    Args:
        share: Share of the training that the trial takes, twice where one source is left; 0 for none.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.hub, self.fresh, self.shown = Record(), Record(), Record(SHOWN)
        self.register_buffer("phase", torch.zeros((), dtype=torch.long))
        self.register_buffer("own", torch.zeros((), dtype=torch.float64))
        self.register_buffer("until", torch.zeros((), dtype=torch.float64))
        self.register_buffer("length", torch.zeros((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros((), dtype=torch.long))
        self.forecasts: tuple[float, float] | None = None
        """What the fresh pathway and the hub were expected to earn at the end, once that was asked."""

    @property
    def at(self) -> Phase:
        """Where the comparison is."""
        return Phase(int(self.get_buffer("phase")))

    @property
    def claims(self) -> bool:
        """Whether the next episodes are the fresh pathway's."""
        return self.at in (Phase.TRIAL, Phase.ALONE)

    def count_to(self, total: int, *, anew: bool) -> None:
        """A training of so many environment steps begins, or goes on: times that are remembered become shares of it.

        Args:
            total: Environment steps, those before included.
            anew: Whether they are counted from zero; a trial that another training left unfinished is then held from its beginning.
        """
        known = self.get_buffer("total")
        share = 1.0 if anew or not int(known) else int(known) / total
        known.fill_(total)
        for buffer in (self.get_buffer("until"), self.get_buffer("own"), *(record.get_buffer("rows")[:, 0] for record in self.records)):
            buffer.mul_(share)
        if anew:
            # What the hub earned before it earned at the beginning; what the fresh pathway did is to be seen again.
            self.hub.get_buffer("rows")[:, 0] = 0.0
            self.fresh.forget()
            self.shown.forget()
            self.get_buffer("own").zero_()
            self.get_buffer("until").fill_(self.get_buffer("length"))

    @property
    def records(self) -> tuple[Record, Record, Record]:
        """Of the hub, of the fresh pathway, and of the latter without noise."""
        return self.hub, self.fresh, self.shown

    def begin(self) -> bool:
        """The fresh pathway begins an episode alone; whether it plays it without noise."""
        started = self.get_buffer("started")
        started += 1
        return self.at is Phase.ALONE and int(started) % SHOW_EVERY == 0

    def ended(self, done: float, earned: float, *, fresh: bool, shown: bool) -> None:
        """An episode ended that the fresh pathway played alone, or, if not `fresh`, that the hub played.

        Args:
            done: Share of the training that is over.
            earned: What the episode earned.
            fresh: Whether the fresh pathway played it.
            shown: Whether it did so without noise.
        """
        if shown:
            self.shown.note(done, earned)
        elif fresh:
            self.fresh.note(float(self.get_buffer("own")), earned)
        elif self.at is Phase.HUB:
            self.hub.note(done, earned)

    def spent(self, share: float) -> None:
        """The fresh pathway played for a share of the training."""
        self.get_buffer("own").add_(share)

    def advance(
        self,
        done: float,
        *,
        one_source: bool,
        round_length: float,
        instead: Sequence[float] | None = None,
        alone: Sequence[float] = (),
        together: Sequence[float] = (),
    ) -> None:
        """Go on to the next phase if it is time to.

        Args:
            done: Share of the training that is over.
            one_source: Whether only one source is left.
            round_length: Share of the training that an episode in every environment takes.
            instead: What a source earned that acts for the hub in evaluations, if one does.
            alone: What the best source earned alone, for which all others can make way.
            together: What the hub earned without noise; none where that is not known well.
        """
        if self.at is Phase.HUB and done >= FROM[one_source] and len(self.hub) >= FEWEST:
            length = TIMES[one_source] * self.share
            self._go(Phase.TRIAL if EACH * round_length <= length and done + length < 1 else Phase.SETTLED)
            self.get_buffer("until").fill_(done + length)
            self.get_buffer("length").fill_(length)
            # What it earned before was another network's, see `HubActorCriticPolicy.exchange`.
            self.fresh.forget()
            self.get_buffer("own").zero_()
        elif self.at is Phase.TRIAL and done >= float(self.get_buffer("until")):
            self._decide(done, instead, alone, one_source=one_source)
        elif self.at is Phase.ALONE and len(self.shown) == SHOWN:
            hub = together or self.hub.latest[-FEWEST:, 1].tolist()
            hubs = [hub, *([alone] if alone else [])] if instead is None else [instead]
            # Looked at again and again, and there is no way back; in the end there is nothing that it could cost.
            needed = RACE_ERRORS if done < NEARLY_OVER else 0.0
            if behind(max(hubs, key=np.mean), self.shown.latest[:, 1].tolist()) > needed:
                self._go(Phase.OVERTAKEN)

    def _decide(self, done: float, instead: Sequence[float] | None, alone: Sequence[float], *, one_source: bool) -> None:
        """Whether the fresh pathway goes on alone."""
        if len(self.fresh) < FEWEST:
            self._go(Phase.SETTLED)
            return
        fresh, hub = self.fresh.latest, self.hub.latest
        hub = hub[len(hub) // 2 :]
        ours = forecast(fresh[:, 0], fresh[:, 1], float(self.get_buffer("own")) + 1 - done)
        if instead is None:
            # A hub whose returns fall while it learns does not fall for ever: it has sources that do not change.
            expected = [float(hub[-FEWEST:, 1].mean()), *([float(np.mean(alone))] if alone else [])]
            # And with one source it does not rise for ever: there is nobody to combine it with, and its correction is soon learned.
            hubs = max(expected if one_source else [forecast(hub[:, 0], hub[:, 1], 1.0), *expected])
        else:
            hubs = float(np.mean(instead))
        self.forecasts = ours, hubs
        self._go(Phase.ALONE if self.forecasts[0] > self.forecasts[1] else Phase.SETTLED)

    def _go(self, phase: Phase) -> None:
        self.get_buffer("phase").fill_(int(phase))
