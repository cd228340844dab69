"""Selection among arms: three rules on one record of returns.

One rule says which arm plays the next episode, one which acts in evaluation, one which sources
stay. An episode is played by one arm from the beginning to the end, deterministically, as it would
be evaluated. The two arms that are compared follow LUCB (Kalyanakrishnan et al. 2012), an algorithm
for best-arm identification: the arm with the greatest mean and the one that is least clearly behind
it. The rest is hubrl's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.selection.settings import TrustSettings
from hubrl.selection.waiting_sources import WaitingSources


class Turn(NamedTuple):
    """An episode to be played."""

    arm: int
    deterministic: bool
    """Whether it is played as in an evaluation, and counts as a record; the actor does not learn
    from it."""


IN_DOUBT = (
    "No source earns clearly more than an untrained network so far: the fresh pathway trains, and "
    "sources are judged beside it."
)

NOTHING = Turn(-2, deterministic=False)


class ArmSelection(WaitingSources):
    """Trust in the sources of a hub, from what every arm earned on the target.

    - *Who plays.* First each source plays `episodes` whole episodes, and the fresh pathway as many
      where no source is known to be better. Then the learner plays: the hub, or the fresh pathway
      (see `Phase`). While two sources contend for being the best one, they play every other
      episode. `judging_share` of the episodes judge, and at the end of the training every other
      one: half of them the learner, half one of the two arms that contend for the best.
    - *Who acts in evaluation.* The source with the greatest mean return, or an arm that learned
      once its latest deterministic episodes exceed that by half of `episode_errors`.
    - *Who stays.* Segments drop a source that is clearly no better than an untrained network. In
      doubt, a source stays if its episodes exceed those of the untrained network by
      `episode_errors`, or if the better half of them is out of its reach.

    Args:
        sources: Names of the sources.
        settings: Thresholds.
        sources_explore: Whether a source that is known to be best goes on playing episodes, from
            which the learner learns off-policy (DQN).
        evidence: Keyword arguments of `ArmEvidence`.
    """

    def __init__(
        self,
        sources: Sequence[str],
        settings: TrustSettings,
        *,
        sources_explore: bool = False,
        **evidence: bool,
    ) -> None:
        super().__init__(sources, settings, **evidence)
        self.sources_explore = sources_explore
        self.done = 0.0
        """Share of the training that is over."""
        self.round_share = 0.0
        """Share of the training that an episode in every environment takes; 0 before any ended."""
        self.turns: list[Turn] = []
        """What is played in each environment; empty outside training."""
        self._refresh()

    def _refresh(self) -> None:
        """Lay the turns out as arrays, which are read in every step."""
        self.playing: Int[np.ndarray, " envs"] = np.array(
            [turn.arm for turn in self.turns], dtype=np.int64
        )
        """Arm of each environment; `together` as -1."""
        self.playing[self.playing == self.together] = -1
        self.deterministic: Bool[np.ndarray, " envs"] = np.array(
            [turn.deterministic for turn in self.turns], dtype=bool
        )
        """Where the episode is played as in an evaluation."""

    def record(self, env: int, value: float, now: int, *, counts: bool = True) -> None:
        """Record the return of the episode that an environment has just finished.

        Args:
            env: Position of the environment.
            value: The return.
            now: Environment steps so far.
            counts: Whether it says what its arm earns; not where many actions were random.
        """
        arm, deterministic = self.turns[env]
        if arm == self.fresh and self.trial.at is Phase.DOUBT:
            self.record_untrained(value, as_evaluated=deterministic or self.every_episode_counts)
        if counts and (deterministic or self.every_episode_counts):
            self.records.add(arm, value, keep=self._is_final)
        if deterministic:
            return
        self.trial.add(now, value, fresh=arm == self.fresh)

    def note_unfinished(
        self, sums: Float[np.ndarray, " envs"], lengths: Int[np.ndarray, " envs"]
    ) -> None:
        """Count unfinished episodes as segments where a training ends before any whole one.

        Only episodes of the greatest length count, so that equal lengths are compared.
        """
        if any(self.records.count(source) for source in self.candidates) or not len(self.turns):
            return
        for source in self.candidates:
            earned = [
                sums[env]
                for env, turn in enumerate(self.turns)
                if turn.arm == source and lengths[env] == lengths.max()
            ]
            if earned:
                self.set_segment_mean(source, float(np.mean(earned)))

    def begin(self, n_envs: int) -> None:
        """Choose what each environment plays, all of whose episodes begin."""
        self.turns = []
        for _ in range(n_envs):
            self.turns.append(self._next())
        self._refresh()

    def end(self) -> None:
        """Stop: nothing is played."""
        self.turns = []
        self._refresh()

    def next_turn(self, env: int, *, counts: bool = True) -> None:
        """Choose what an environment plays next.

        Args:
            env: Position of the environment.
            counts: Whether episodes say what their arms earn; where not yet, no comparison begins.
        """
        self.turns[env] = NOTHING
        self.turns[env] = self._next(compare=counts)
        self._refresh()

    def _next(self, *, compare: bool = True) -> Turn:
        if not self.candidates:
            return Turn(self.learner, deterministic=False)
        if self.trial.at is not Phase.TRIAL:
            lacking = self._unscreened() if compare else None
            if lacking is not None:
                evaluated = lacking != self.fresh or self.records.count(
                    self.untrained
                ) <= self.records.count(self.untrained_noisy)
                return Turn(lacking, deterministic=evaluated)
            contested = self._contested()
            if contested is not None and np.random.random() < 0.5:
                return Turn(contested, deterministic=True)
            if np.random.random() < (
                0.5 if self._is_final or self.is_promising else self.settings.judging_share
            ):
                judged = self._judged()
                if judged is not None:
                    return Turn(judged, deterministic=True)
        return Turn(self.learner, deterministic=False)

    @property
    def _is_final(self) -> bool:
        """Whether the training is nearly over, so that arms change little."""
        return self.done >= 1 - max(self.settings.final_share, 2 * self.round_share)

    def _unscreened(self) -> int | None:
        """The arm that lacks most episodes of the first comparison; None once there is none."""
        if self.is_screened:
            return None
        in_play = [turn.arm for turn in self.turns]
        lacking = {
            arm: self.settings.episodes - self.records.count(arm) - in_play.count(arm)
            for arm in self.first_compared
        }
        if self.trial.at is Phase.DOUBT:
            # Half as in an evaluation, half as in training, from which it learns.
            played = (
                self.records.count(self.untrained)
                + self.records.count(self.untrained_noisy)
                + in_play.count(self.fresh)
            )
            lacking[self.fresh] = (2 * self.settings.episodes - played + 1) // 2
        most = max(lacking, key=lambda arm: lacking[arm], default=None)
        return most if most is not None and lacking[most] > 0 else None

    def _judged(self) -> int | None:
        """The arm of the next judging episode: the learner, or one of the two contenders.

        Half of the time it is the learner, else the contender with fewer episodes on record.
        Where one is clearly best there are none: nothing is judged, or the best explores.
        """
        if np.random.random() < 0.5:
            return self.learner
        waiting = self.waiting if self.done >= self.settings.judged_by else []
        if waiting and np.random.random() < 0.5:
            return waiting[0]
        arms = [*self._contending_sources, self.learner]
        unknown = [arm for arm in arms if self.records.count(arm) < 2]
        if unknown:
            return unknown[0]
        leader = max(arms, key=self.records.mean_return)
        lags = {arm: self.lag(arm, leader) for arm in arms if arm != leader}
        challenger = min(lags, key=lambda arm: lags[arm], default=leader)
        if challenger == leader or lags[challenger] > self.settings.episode_errors:
            return leader if self.sources_explore and leader != self.learner else None
        return min((leader, challenger), key=self.records.count)

    def _contested(self) -> int | None:
        """The source to play of two that contend for being the best; None where that is known.

        Where returns vary much, the best by a few episodes is the luckiest. None either where the
        learner is clearly better than both, nor in doubt before one looks better than untrained.
        """
        if self.trial.at is Phase.DOUBT and not self.is_promising:
            return None
        rivals = self.rivals(self._contending_sources, self.settings.episode_errors)
        if rivals is None or self.lag(rivals[0], self.learner) > self.settings.episode_errors:
            return None
        return min(rivals, key=self.records.count)

    @property
    def _contending_sources(self) -> list[int]:
        late = self.done >= self.settings.judged_by
        return [
            source for source in self.candidates if late or self.fate(source) is not Fate.DEFERRED
        ]

    def update(self, now: int, total: int, round_steps: float) -> list[str]:
        """Settle what can be settled between two rollouts.

        Args:
            now: Environment steps so far.
            total: Environment steps of the whole training.
            round_steps: Environment steps of one episode in every environment.

        Returns:
            What changed and why, in sentences; empty if nothing did.
        """
        self.done = now / total
        self.round_share = min(round_steps / total, 0.25) if np.isfinite(round_steps) else 0.0
        if not self.candidates:
            return []
        return [*self.join(), *self._settle(now, total, round_steps)]

    def _settle(self, now: int, total: int, round_steps: float) -> list[str]:
        if self.trial.at is Phase.DOUBT:
            return self._settle_doubt()
        if not self.is_screened:
            return self._settle_screening()
        if not self.has_fresh:
            return []
        alternatives = [
            self.records.mean_return(arm)
            for arm in (*self.candidates, self.together)
            if self.records.count(arm)
        ]
        before = self.trial.at
        phase = self.trial.advance(
            now,
            total,
            n_sources=len(self.candidates),
            round_steps=round_steps,
            alternatives=alternatives,
        )
        if phase is None:
            return []
        if phase is not Phase.ALONE:
            # What the fresh pathway earned was another network's.
            self.records.forget(self.fresh)
        return [self.trial.explained(before)]

    def _settle_doubt(self) -> list[str]:
        """End the doubt once whole episodes show a source that beats an untrained network.

        It must also earn more than the fresh pathway does by then.
        """
        enough = self.settings.episodes
        if min(self.records.count(arm) for arm in (self.untrained, *self.first_compared)) < enough:
            return []
        first = not self.is_screened
        self.get_buffer("screened").fill_(True)
        rivals = self.rivals(self._contending_sources, self.settings.episode_errors / 2)
        if any(self.copyable) and rivals is not None:
            # Only one is copied, and a few episodes choose the luckiest.
            return [IN_DOUBT] if first else []
        learned = (
            self.records.mean_return(self.fresh)
            if self.records.count(self.fresh) >= enough
            else -np.inf
        )
        better = [source for source in self.first_compared if self.worth_in_doubt(source) > learned]
        if not better:
            return [IN_DOUBT] if first else []
        for source in better:
            self.get_buffer("fates")[source] = int(Fate.KEPT)
        self.records.forget(self.fresh)
        names = self.records.names
        kept = [f"{names[one]} is kept: it earns more than an untrained network." for one in better]
        copyable = [source for source in better if self.copyable[source]]
        if not copyable:
            self.trial.go(Phase.HUB)
            return kept
        self.trial.go(Phase.ALONE)
        self.get_buffer("copied_source").fill_(max(copyable, key=self.worth_in_doubt))
        return [*kept, f"The fresh pathway goes on from a copy of {names[self.copied]}."]

    def _settle_screening(self) -> list[str]:
        enough = 1 if self.done >= self.settings.judged_by else self.settings.episodes
        if not all(self.records.count(source) >= enough for source in self.first_compared):
            return []
        self.get_buffer("screened").fill_(True)
        played = [source for source in self.candidates if self.records.count(source)]
        means = ", ".join(
            f"{self.records.names[source]} {self.records.mean_return(source):.4g}"
            for source in played
        )
        return [f"Whole episodes of each source earn {means}; the hub plays from now on."]
