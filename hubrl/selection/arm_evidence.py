"""Evidence on the arms: records of returns, verdicts of segments, and what follows from both."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hubrl.selection.fresh_trial import FreshTrial, Phase
from hubrl.selection.probe_verdict import Fate, start_behind
from hubrl.selection.return_records import ReturnRecords
from hubrl.selection.settings import TrustSettings
from hubrl.selection.statistics import (
    better_half,
    conservative_lag,
    corrected_lag,
    stands_out,
)

FRESH_ARM, TOGETHER_ARM = "fresh", "together"
FREQUENT = 4
"""How many times as many episodes are on record of an arm that learns where all of them count."""
UNTRAINED, UNTRAINED_NOISY = "untrained", "untrained-noisy"


class ArmEvidence(nn.Module):
    """Records of the arms and verdicts on the sources, saved with the model.

    Arms are the sources in order, then the fresh pathway, then all pathways of the hub together.

    Args:
        sources: Names of the sources.
        settings: Thresholds.
        fresh: Whether there is a fresh pathway, to doubt sources by and to hold a trial of.
        tuned: Whether sources are trained further, so that their old returns mean little.
        every_episode_counts: Whether an episode of learning is played as in an evaluation.
        copies: Whether the fresh pathway goes on alone from a copy of the best source, once one is
            known to be better than an untrained network.
    """

    def __init__(
        self,
        sources: Sequence[str],
        settings: TrustSettings,
        *,
        fresh: bool = True,
        tuned: bool = False,
        every_episode_counts: bool = False,
        copies: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.has_fresh = settings, fresh
        self.every_episode_counts = every_episode_counts
        self.copyable = [copies] * len(sources)
        """Whether the fresh pathway may go on from a copy of each source."""
        self.n_sources = len(sources)
        self.fresh, self.together = self.n_sources, self.n_sources + 1
        self.untrained, self.untrained_noisy = self.n_sources + 2, self.n_sources + 3
        names = [*sources, FRESH_ARM, TOGETHER_ARM, UNTRAINED, UNTRAINED_NOISY]
        learning = {FRESH_ARM, TOGETHER_ARM, *(sources if tuned else ())}
        # Where every game counts, a few would be those of a moment.
        window = settings.window * (FREQUENT if every_episode_counts else 1)
        self.records = ReturnRecords(names, learning, window)
        self.trial = FreshTrial(settings)
        self.register_buffer("fates", torch.full((self.n_sources,), int(Fate.KEPT)))
        self.register_buffer("segment_means", torch.zeros(self.n_sources, dtype=torch.float64))
        self.register_buffer("segment_start", torch.zeros(self.n_sources, dtype=torch.float64))
        self.register_buffer("has_segments", torch.zeros(self.n_sources, dtype=torch.bool))
        self.register_buffer("screened", torch.zeros((), dtype=torch.bool))
        self.register_buffer("copied_source", torch.tensor(-1))
        self._evaluation: tuple[list[tuple[int, int]], int] = ([], 0)
        """State of the buffers, and the arm that acts in evaluation by it."""

    def doubt_all(self) -> None:
        """Begin without a probe: nothing is known of any source."""
        if self.has_fresh:
            self.judge([Fate.DOUBTED] * self.n_sources, [torch.nan] * self.n_sources)

    def judge(
        self, fates: Sequence[Fate], segment_means: Sequence[float], start: Sequence[float] = ()
    ) -> None:
        """Take over the verdict of a probe.

        Args:
            fates: How far each source is trusted.
            segment_means: Mean return of each source's segments; NaN without any.
            start: Where the router starts for each source until whole episodes were compared; zeros
                if not given.
        """
        self.get_buffer("fates").copy_(torch.tensor([int(fate) for fate in fates]))
        self.get_buffer("segment_start").copy_(
            torch.tensor(list(start) or [0.0] * self.n_sources, dtype=torch.float64)
        )
        for source, mean in enumerate(segment_means):
            self.set_segment_mean(source, mean)
        if all(fate is Fate.DROPPED for fate in fates):
            self.trial.go(Phase.ALONE)
            self.get_buffer("screened").fill_(True)
        elif Fate.KEPT not in fates:
            self.trial.go(Phase.DOUBT)

    def set_segment_mean(self, source: int, mean: float) -> None:
        """Set the mean return of a source's segments; NaN for none."""
        # NaN is not stored: files with weights that are no numbers are refused as damaged.
        known = not math.isnan(mean)
        self.get_buffer("segment_means")[source] = mean if known else 0.0
        self.get_buffer("has_segments")[source] = known

    @property
    def _segment_means(self) -> list[float]:
        """Mean return of each source's segments; NaN without any."""
        means: list[float] = (
            self.get_buffer("segment_means")
            .where(self.get_buffer("has_segments"), torch.nan)
            .tolist()
        )
        return means

    @property
    def unplayed(self) -> list[int]:
        """Sources that should have played a whole episode and have not."""
        return [source for source in self.first_compared if not self.records.count(source)]

    @property
    def has_episodes(self) -> bool:
        """Whether any arm has a whole episode on record."""
        return any(self.records.count(arm) for arm in range(self.untrained))

    @property
    def is_screened(self) -> bool:
        """Whether the first comparison of the sources is over."""
        return bool(self.get_buffer("screened"))

    @property
    def is_settled(self) -> bool:
        """Whether the sources were compared and none is in doubt: the router may start by that."""
        return self.is_screened and self.trial.at is not Phase.DOUBT

    @property
    def copied(self) -> int:
        """The source from a copy of which the fresh pathway went on; -1 for none."""
        return int(self.get_buffer("copied_source"))

    def fate(self, source: int) -> Fate:
        """How far a source is trusted."""
        return Fate(int(self.get_buffer("fates")[source]))

    @property
    def candidates(self) -> list[int]:
        """Sources that segments neither dropped nor set aside."""
        out = (Fate.DROPPED, Fate.SET_ASIDE)
        return [source for source in range(self.n_sources) if self.fate(source) not in out]

    def record_untrained(self, value: float, *, as_evaluated: bool) -> None:
        """Record the fresh pathway's first episodes, before it has learned anything."""
        arm = self.untrained if as_evaluated else self.untrained_noisy
        # On Atari every one of its first games counts, and twelve still are an untrained network's.
        most = self.settings.episodes * (FREQUENT if self.every_episode_counts else 1)
        if self.records.count(arm) < most:
            self.records.add(arm, value)

    def lag_of_untrained(self, source: int) -> float:
        """Standard errors by which an untrained network earns less than a source in evaluation.

        The spread is the greater of the source's and of all the untrained network's episodes, those
        with noise included: what does nothing earns the same every time, and any other such network
        hardly less.
        """
        own, untrained = self.records.returns(source), self.records.returns(self.untrained)
        spread = [*untrained, *self.records.returns(self.untrained_noisy)]
        return conservative_lag(untrained, own, spread)

    @property
    def is_promising(self) -> bool:
        """Whether a source in doubt may well be better than an untrained network."""
        lags = (self.lag_of_untrained(source) for source in self.candidates)
        return self.trial.at is Phase.DOUBT and any(
            lag > self.settings.episode_errors / 2 for lag in lags
        )

    def worth_in_doubt(self, source: int) -> float:
        """What a source earns where that is clearly more than an untrained network does, else -inf.

        The mean of its better half where that alone is out of an untrained network's reach.
        """
        own = self.records.returns(source)
        untrained = [
            value
            for arm in (self.untrained, self.untrained_noisy)
            for value in self.records.returns(arm)
        ]
        if stands_out(own, untrained, 2 * self.settings.episode_errors):
            return float(np.mean(better_half(own)))
        is_better = self.lag_of_untrained(source) > self.settings.episode_errors
        return self.records.mean_return(source) if is_better else -math.inf

    @property
    def first_compared(self) -> list[int]:
        """Sources of the first comparison, the best of the probe first."""
        first = [source for source in self.candidates if self.fate(source) is not Fate.DEFERRED]
        means = self._segment_means
        return sorted(
            first, key=lambda source: math.inf if math.isnan(means[source]) else -means[source]
        )

    def lag(self, arm: int, other: int) -> float:
        """Standard errors by which an arm's mean lies below another's (`corrected_lag`)."""
        return corrected_lag(self.records.returns(arm), self.records.returns(other))

    def rivals(self, sources: Sequence[int], errors: float) -> tuple[int, int] | None:
        """The best of some sources and the one that is least clearly behind it.

        None once some standard errors separate them, or both have played all their episodes.
        """
        known = self.records
        # One that was deferred has no spread when it comes in.
        compared = [source for source in sources if known.count(source) > 1]
        if len(compared) < 2:
            return None
        best = max(compared, key=known.mean_return)
        others = (source for source in compared if source != best)
        rival = min(others, key=lambda source: self.lag(source, best))
        is_over = min(known.count(best), known.count(rival)) >= self.settings.contest
        return None if is_over or self.lag(rival, best) > errors else (best, rival)

    @property
    def best_source(self) -> int | None:
        """The source with the greatest mean of episodes, else of segments; None without any."""
        played = [source for source in self.candidates if self.records.count(source)]
        if played:
            return max(played, key=self.records.mean_return)
        means = self._segment_means
        tried = [source for source in self.candidates if not math.isnan(means[source])]
        return max(tried, key=lambda source: means[source], default=None)

    @property
    def learner(self) -> int:
        """The arm from whose episodes the training learns."""
        return self.fresh if self.trial.fresh_claims else self.together

    @property
    def evaluation_arm(self) -> int:
        """The arm that acts in evaluation, and is saved and exported as the agent.

        It depends on the buffers alone, and is computed anew when one of them has changed:
        `predict` reads it at every call.
        """
        parts = self._buffers, self.records._buffers, self.trial._buffers
        buffers = [cast("Tensor", buffer) for part in parts for buffer in part.values()]
        state = [(buffer.data_ptr(), buffer._version) for buffer in buffers]
        if state != self._evaluation[0]:
            self._evaluation = state, self._best_arm()
        return self._evaluation[1]

    def _best_arm(self) -> int:
        learned = [
            arm
            for arm in (self.together, self.fresh)
            if self.records.count(arm) >= self.settings.episodes
        ]
        arm = max(learned, key=self.records.mean_return, default=None)
        source = self.best_source
        if source is None:
            return self.learner if arm is None else arm
        if arm is None or not self.records.count(source):
            return source
        return arm if self.lag(source, arm) > self.settings.episode_errors / 2 else source

    def gap(self, arm: int, other: int) -> float:
        """How much less an arm earns than another, as a share of all that is known.

        From 0, not less, to 1, where it was not judged yet or earns the least on record.
        """
        if self.records.count(arm) < self.settings.episodes:
            return 1.0
        returns = [
            value for index in range(self.n_sources + 2) for value in self.records.returns(index)
        ]
        best, own = self.records.mean_return(other), self.records.mean_return(arm)
        return min(max((best - own) / max(best - min(returns), 1e-8), 0.0), 1.0)

    @property
    def router_start(self) -> list[float]:
        """Where the router starts for each source, in nats.

        By segments until whole episodes were compared; then see `start_behind`, and sources
        without whole episodes start lowest.
        """
        start = [-self.settings.most_lag] * self.n_sources
        best = self.best_source
        if best is None or not self.records.count(best) or not self.is_screened:
            by_segments: list[float] = self.get_buffer("segment_start").tolist()
            return by_segments
        for source in self.candidates:
            if self.records.count(source) > 1 or source == best:
                start[source] = start_behind(self.lag(source, best), self.settings)
        return start
