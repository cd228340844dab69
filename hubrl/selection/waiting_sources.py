"""Sources of a large hub that halving set aside: one short segment proves nothing, so they wait."""

import math
from collections.abc import Sequence

from hubrl.selection.arm_evidence import ArmEvidence
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.selection.settings import TrustSettings


class WaitingSources(ArmEvidence):
    """Evidence on the arms, by which sources that were set aside may join the hub after all.

    Arguments as of `ArmEvidence`.
    """

    def __init__(self, sources: Sequence[str], settings: TrustSettings, **evidence: bool) -> None:
        super().__init__(sources, settings, **evidence)
        self.joined: list[int] = []
        """Sources that joined in the last call of `join`."""

    @property
    def waiting(self) -> list[int]:
        """Sources set aside that are yet to play whole episodes, the best by segments first.

        One episode each, and up to `episodes` of a source that earns no less than the best one's
        least.
        """
        aside = [one for one in range(self.n_sources) if self.fate(one) is Fate.SET_ASIDE]
        if not aside:
            return []
        best, known, means = self.best_source, self.records, self._segment_means
        played = [] if best is None else known.returns(best)
        least = min(played, default=-math.inf)
        waiting = [
            source
            for source in aside
            if not known.count(source)
            or (known.count(source) < self.settings.episodes and known.mean_return(source) >= least)
        ]
        return sorted(waiting, key=lambda source: (not known.count(source), -means[source]))

    def join(self) -> list[str]:
        """Let sources that were set aside join, if they earned no less than the best.

        Returns:
            What changed and why, in sentences.
        """
        best, known = self.best_source, self.records
        worth = -math.inf if best is None else known.mean_return(best)
        self.joined = [
            source
            for source in range(self.n_sources)
            if self.fate(source) is Fate.SET_ASIDE
            and known.count(source) >= self.settings.episodes
            and not known.mean_return(source) < worth
        ]
        in_doubt = self.trial.at is Phase.DOUBT
        for source in self.joined:
            self.get_buffer("fates")[source] = int(Fate.DOUBTED if in_doubt else Fate.KEPT)
        return [
            f"{known.names[source]}, which halving had set aside, earns "
            f"{known.mean_return(source):.4g} in whole episodes, no less than the best source: it "
            "joins the hub."
            for source in self.joined
        ]
