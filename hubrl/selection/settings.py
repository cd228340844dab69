"""The thresholds of every decision about trust, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrustSettings:
    """Thresholds by which arms are tried, dropped and chosen.

    An *arm* is what can play an episode: one source alone as it is, all pathways of the hub
    together, or the fresh pathway alone. Evidence is of two kinds: *segments*, short pieces from a
    reset that a probe plays before the training, and whole *episodes* (on Atari whole games).
    `docs/concepts/trust.md` explains the rules on one page.
    """

    episodes: int = 3
    """Whole episodes per source before sources are compared: the least that has a spread."""
    episode_errors: float = 2.0
    """Standard errors that make a difference of whole episodes clear. Twice as many are asked of
    segments, which are few and show the beginning of an episode alone; half as many by which an arm
    that learns must exceed the best source before it acts in evaluation, which can be taken
    back."""
    contest: int = 18
    """Whole episodes that each of two sources plays at most to find out which is the best."""
    window: int = 5
    """Latest deterministic episodes by which an arm that learns is judged before the end, because
    it changes; four times as many where all its episodes count, as on Atari."""
    judging_share: float = 0.1
    """Share of the episodes that judge arms, deterministically, and from which the actor does not
    learn; half as many where one arm is clearly best, and more in a contest of two sources."""
    final_share: float = 0.1
    """Share of the training at its end, at least two rounds of episodes, in which every other
    episode judges and all of them count, so that the choice rests on many episodes."""
    judged_by: float = 0.25
    """Share of the training from which on deferred sources get episodes, and with several sources a
    trial may begin."""
    most_lag: float = 6.0
    """Nats by which the router starts lower, at most, for a source that earns less than the best: a
    weight of 1/400."""
    trial_share: float = 0.1
    """Share of the training that the fresh pathway's trial takes; none where two rounds of episodes
    do not fit."""
    rise: float = 3.0
    """How many times as long as a trial its rise is taken to go on: learning curves flatten."""
