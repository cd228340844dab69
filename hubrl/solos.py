"""Whole episodes that one pathway plays alone in training, and what follows from them."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hubrl.evidence import DISTRUST, RACE_ERRORS, STANDARD_ERRORS, behind, surely_behind
from hubrl.growth import SHOW_EVERY, Growth, Phase
from hubrl.pathways import FRESH
from hubrl.standing import ENOUGH, Standing, starting_points

MOST_BEHIND = 6.0
"""Standard errors beyond which it does not matter how far a pathway is behind: its weight is gone."""

DOUBTED = 5
"""Returns that a pathway must have before it is decided whether those that a probe doubts stay."""

LEAST = 2
"""Returns without which nobody is dropped in doubt, however late it is."""

JUDGING = 0.2
"""Share of the training within which sources play alone until they are judged, and by whose end nobody is in doubt any more."""

LATE = 0.5
"""Share of the training that is left when pathways that together still earn less than one of them alone make way for it, or get help."""

FALLING = 0.5
"""Share of the episodes that pathways play together beyond which they end early too often, for that."""

LEADS = 1.0
"""Standard errors by which the best source must earn more than all together to act for them in evaluations; behind the best alone by no
more, a source may rise.

Few, because this can be taken back, and where returns vary much they are never more; but the best of several is the luckiest of them.
"""

TOGETHER = "together"
"""What the record of episodes that pathways play together is called in logs."""

APART = 8.0
"""How much lower the router's number of the fresh pathway is while sources learn to play together: its weight is next to nothing."""

OFTEN = 4
"""How many times as many returns as another a pathway has when it is known well enough beside it."""

LATEST = 8
"""Latest episodes without noise by which pathways are judged together: they learn, and what they earned a while ago says little."""


class Solos(nn.Module):
    """Whole episodes that one pathway plays alone in training, and what they say of it [ours].

    Pathways that share an episode share its return; only alone each earns its own. After a probe every episode is played alone, until each
    source has played enough to be judged: a mixture of gaits that were not compared yet earns less than any of them. From then on some
    are, and who is next is drawn by `exp(-lag / 2)`, so that those that are known to be worse cost little; `lag` is what a probe
    believed, until a pathway is judged. An episode that would tell nothing more is not played alone. While the fresh pathway shows how fast
    it learns, all are its own.

    Trust follows what each earns, see `revised`; but who earns less alone may be what the others lack. So nobody is lowered by chance, or
    while all together earn more than the best, and for as long as several sources learn to play together the fresh pathway is kept out.

    Where a probe is in doubt whether a source is worth more than a network that has learned nothing, the fresh pathway plays alone too,
    until each has `DOUBTED` whole episodes, or `LEAST` once it is late: a source stays if it earned more by two standard errors, and is
    dropped if not. So it is with those that were set aside, from the first episode on that ends before its limit of time.

    A source plays alone as it is, neither corrected nor noisy, and so do the pathways together in one of `SHOW_EVERY` of their episodes:
    these say what each earns in evaluations, and if a source earns more there than all together by a standard error, it acts in them. If
    one is ahead by three standard errors when half of the training is over, and most episodes together end early, the others are
    dropped: mixing gaits makes some robots fall, and the rest of the training goes into correcting the one that does not. It then acts
    in evaluations untouched until corrected it earns as much.

    Args:
        names: The pathways' names.
        share: Share of the episodes once the sources are judged, at the start of the training; it falls to zero with what remains of it.
        trial_share: Share of the training in which the fresh pathway shows how fast it learns, see `Growth`; 0 for none.
        fresh_waits: Whether the fresh pathway is kept out while several sources learn to play together.
        tuned: Whether sources are trained further, so that what they earned a while ago says little.
    """

    def __init__(self, names: list[str], share: float, trial_share: float = 0.0, *, fresh_waits: bool = True, tuned: bool = False) -> None:
        super().__init__()
        self.share, self.fresh_waits = share, fresh_waits
        self.remaining = 1.0
        """Share of the training that is still to come; a callback sees to it."""
        self.sources = [index for index, name in enumerate(names) if name != FRESH]
        self.standing = Standing(names, steady=[] if tuned else [names[index] for index in self.sources])
        self.together = Standing([TOGETHER], LATEST)
        self.early = Standing([TOGETHER], LATEST)
        """Of the same episodes: 1 where it ended before its limit of time."""
        self._begun = 0
        self.growth = Growth(trial_share) if trial_share > 0 and names[-1] == FRESH else None
        self.register_buffer("lag", torch.zeros(len(names)))
        self.register_buffer("believes", torch.zeros((), dtype=torch.bool))
        self.register_buffer("doubted", torch.zeros(len(names), dtype=torch.bool))
        self.register_buffer("aside", torch.zeros(len(names), dtype=torch.bool))
        self.register_buffer("ends_early", torch.zeros((), dtype=torch.bool))
        self.register_buffer("lasted", torch.zeros(2, dtype=torch.long))
        self.register_buffer("committed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("apart", torch.zeros(()))
        self.playing: Int[np.ndarray, " envs"]
        """Who plays alone in each environment; -1 for nobody."""
        self.shown: Bool[np.ndarray, " envs"]
        """Where an episode is played without noise."""
        self.end()

    def believe(self, start: Sequence[float], doubted: Collection[str] = (), aside: Collection[str] = ()) -> None:
        """Take over where a probe lets the router start, whom it doubts, and whom it set aside."""
        numbers = torch.as_tensor(list(start), dtype=torch.float32)
        self.get_buffer("lag").copy_((numbers.max() - numbers).clamp_max(MOST_BEHIND))
        for buffer, those in (("doubted", doubted), ("aside", aside)):
            self.get_buffer(buffer).copy_(torch.tensor([name in those for name in self.standing.names]))
        self.get_buffer("believes").fill_(True)
        self.get_buffer("apart").zero_()

    def settle(self, trusted: Sequence[bool]) -> tuple[list[bool], list[float]] | None:
        """Whom to trust and where the router starts, as soon as whole episodes say so of everybody in doubt; then nobody is.

        Args:
            trusted: For every pathway, whether a probe left it in.

        Returns:
            None if nobody is in doubt, or it cannot be told yet.
        """
        doubted: list[bool] = self.get_buffer("doubted").tolist()
        counts: list[int] = self.standing.get_buffer("counts").tolist()
        told = all(counts[index] >= self._enough for index, stays in enumerate(trusted) if stays)
        if not (self.in_doubt and told):
            return None
        names, returns = self.standing.names, [self.standing.of(index) for index in range(len(trusted))]
        fresh = returns[names.index(FRESH)]
        kept = [stays and not (doubted[index] and behind(fresh, returns[index]) <= STANDARD_ERRORS) for index, stays in enumerate(trusted)]
        sources = [names[index] for index in self.sources if kept[index]]
        start = list(starting_points(dict(zip(names, returns, strict=True)), sources).values())
        self.believe(start)
        return kept, start

    @property
    def in_doubt(self) -> bool:
        """Whether it is to be decided by whole episodes if some sources stay."""
        return bool(self.get_buffer("doubted").any())

    def see_early_end(self) -> None:
        """An episode ended before its limit of time, whoever played it."""
        self.get_buffer("ends_early").fill_(True)

    def taken_back(self, trusted: Sequence[bool]) -> tuple[list[bool], list[float]] | None:
        """Whom to trust and where the router starts, if those that were set aside are now in doubt, because an episode ended early.

        Not once it is too late to play whole episodes: nobody is in doubt for longer than `JUDGING`. And not while the fresh pathway
        learns alone, because all episodes are its own.

        Args:
            trusted: For every pathway, whether a probe left it in.

        Returns:
            None if nobody comes back.
        """
        aside: list[bool] = self.get_buffer("aside").tolist()
        if self.claimed or not (any(aside) and bool(self.get_buffer("ends_early"))) or self.remaining <= 1 - JUDGING:
            return None
        lag: list[float] = self.get_buffer("lag").tolist()
        doubted = [back or doubt for back, doubt in zip(aside, self.get_buffer("doubted").tolist(), strict=True)]
        start = [-DISTRUST if doubt else -less for doubt, less in zip(doubted, lag, strict=True)]
        self.believe(start, [name for name, doubt in zip(self.standing.names, doubted, strict=True) if doubt])
        return [stays or back for stays, back in zip(trusted, aside, strict=True)], start

    def drop(self, kept: Sequence[bool]) -> None:
        """Some leave for good: they act for nobody any more, and who of them is playing hands the rest of the episode over to all together.

        Args:
            kept: For every pathway, whether it stays.
        """
        self.get_buffer("committed").fill_(sum(kept) == 1 and any(kept[index] for index in self.sources))
        for index in self.sources:
            if not kept[index]:
                self.standing.forget(index)
        leaving = np.array([player >= 0 and not kept[player] for player in self.playing.tolist()], dtype=bool)
        self.playing[leaving], self.shown[leaving] = -1, False

    @property
    def acting(self) -> int:
        """The source that acts in evaluations, alone and as it is, because it earns more than all together, by `LEADS`; -1 for none."""
        return self._instead(LEADS)

    def _instead(self, errors: float) -> int:
        """The source that earns more than all together by some standard errors, or at all if all others made way for it; -1 for none."""
        return self._ahead(0.0 if bool(self.get_buffer("committed")) else errors)

    @property
    def chosen(self) -> int:
        """The source that all others should make way for, because it still earns more than all together half-way; -1 for none.

        Nobody while the fresh pathway learns alone: all together then earn what they did before. And nobody where most of their episodes
        last to the limit of time: what they lose there by mixing they can still learn not to.
        """
        late = self.remaining <= LATE and not self.claimed
        return self._ahead(RACE_ERRORS) if late and float(self.early.worth[0]) > FALLING else -1

    def _ahead(self, errors: float) -> int:
        """The source that earns most, if by so many standard errors more than all together; -1 for none."""
        best, together = self.standing.most(self.sources), self.together.of(0)
        if best is None or min(len(together), int(self.standing.get_buffer("counts")[best])) < ENOUGH:
            return -1
        return best if behind(together, self.standing.of(best)) > errors else -1

    def end(self, n_envs: int = 0) -> None:
        """Nobody plays alone any more."""
        self.playing, self.shown = np.full(n_envs, -1), np.zeros(n_envs, dtype=bool)

    def begin(self, n_envs: int, trusted: Sequence[bool]) -> None:
        """Choose who plays alone in each of some environments, whose episodes begin."""
        self.end(n_envs)
        for env in range(n_envs):
            self._next(env, trusted)

    def ended(
        self, env: int, earned: float, trusted: Sequence[bool], *, done: float = 1.0, whole: bool = True, early: bool = False
    ) -> None:
        """An episode ended: remember what it earned, and choose who plays the next.

        Args:
            env: In which environment.
            earned: Its return.
            trusted: For every pathway, whether a probe left it in.
            done: Share of the training that is over.
            whole: Whether it was seen from its beginning; otherwise it says nothing.
            early: Whether it ended before its limit of time.
        """
        self.get_buffer("lasted")[1] += 1
        if whole:
            self._remember(env, earned, done, early=early)
        self.playing[env] = -1
        self._next(env, trusted)

    def _remember(self, env: int, earned: float, done: float, *, early: bool) -> None:
        player = int(self.playing[env])
        fresh = player >= 0 and self.standing.names[player] == FRESH
        if self.growth is not None and bool(self.get_buffer("believes")) and (fresh or player < 0):
            self.growth.ended(done, earned, fresh=fresh, shown=fresh and bool(self.shown[env]))
        if player < 0 and bool(self.shown[env]):
            self.together.note(0, earned)
            self.early.note(0, float(early))
        # While it learns alone, what the fresh pathway earned a while ago says nothing of it.
        if player >= 0 and not (fresh and self.claimed):
            self.standing.note(player, earned)

    def revised(self, trusted: Sequence[bool]) -> Float[Tensor, " pathways"]:
        """By how much more than was believed each trusted pathway lies behind the best, in standard errors.

        Less only of who is within `LEADS` of the best: few episodes that vary much are no evidence against what a probe saw clearly. More
        only of who clearly is behind, by `RACE_ERRORS`, and of nobody once pathways together earn more than the best of them alone: who
        earns less alone may still be what the others lack. None until two of them have played enough, and none beyond `MOST_BEHIND`.
        The fresh pathway counts as `APART` more while it waits.
        """
        counts, old = self.standing.get_buffer("counts"), self.get_buffer("lag")
        judged = [index for index, stays in enumerate(trusted) if stays and int(counts[index]) >= ENOUGH]
        new, complement = old.clone(), False
        if len(judged) > 1:
            best = self.standing.of(max(judged, key=lambda index: np.mean(self.standing.of(index))))
            together = self.together.of(0)
            complement = len(together) >= ENOUGH and bool(np.mean(together) > np.mean(best))
            for index in judged:
                own = self.standing.of(index)
                lag = min(max(behind(own, best), 0.0), MOST_BEHIND)
                if lag < min(float(old[index]), LEADS) or (surely_behind(own, best) > RACE_ERRORS and not complement):
                    new[index] = lag
        change = new - old
        old.copy_(new)
        change[-1] += self._set_apart(trusted, complement=complement)
        return change

    def _set_apart(self, trusted: Sequence[bool], *, complement: bool) -> float:
        """By how much more than before the fresh pathway is kept out, for as long as several sources learn to play together.

        The fresh pathway would be a way to risk nothing while they still do what they should not, and what it plays they do not learn.
        Those that are clearly behind do not count; and from half-way on it comes in where most of their episodes end early and they earn
        no more than the best of them alone, because they do not learn it without help.
        """
        lag, apart = self.get_buffer("lag"), self.get_buffer("apart")
        in_favour = sum(trusted[index] and float(lag[index]) <= RACE_ERRORS for index in self.sources)
        decided = bool(self.get_buffer("believes")) and not self.in_doubt
        beside = self.fresh_waits and decided and in_favour > 1 and trusted[-1] and len(self.sources) < len(trusted)
        in_vain = self.remaining <= LATE and not complement and float(self.early.worth[0]) > FALLING
        wanted = APART if beside and not in_vain else 0.0
        change = wanted - float(apart)
        apart.fill_(wanted)
        return change

    @property
    def claimed(self) -> bool:
        """Whether the next episodes are the fresh pathway's, which learns alone."""
        return self.growth is not None and self.growth.claims

    def stepped(self, share: float, n_steps: int = 1) -> None:
        """All environments took some steps while the same played, each step of each of them a share of the training."""
        self.get_buffer("lasted")[0] += n_steps * len(self.playing)
        if self.growth is not None and bool(self.get_buffer("believes")):
            fresh = (self.playing == len(self.standing.names) - 1) & ~self.shown
            self.growth.spent(share * n_steps * int(fresh.sum()))

    def grow(self, trusted: Sequence[bool], total: int) -> bool:
        """See to the fresh pathway's trial; whether it has overtaken the sources, which may be dropped.

        Not while anybody is in doubt, whose whole episodes decide first, or before any episode has shown how long they are.

        Args:
            trusted: For every pathway, whether a probe left it in.
            total: Environment steps of the training.
        """
        steps, episodes = self.get_buffer("lasted").tolist()
        if self.growth is None or not bool(self.get_buffer("believes")) or not trusted[-1]:
            return False
        if self.in_doubt or episodes == 0:
            return False
        round_length = steps / episodes * len(self.playing) / total
        acting = self._instead(STANDARD_ERRORS)
        instead = self.standing.of(acting) if acting >= 0 else None
        best = self.standing.most(self.sources)
        alone = [] if best is None or int(self.standing.get_buffer("counts")[best]) < ENOUGH else self.standing.of(best)
        together = self.together.of(0) if int(self.together.get_buffer("counts")[0]) >= ENOUGH else []
        one_source = sum(trusted) == 2
        self.growth.advance(
            1 - self.remaining, one_source=one_source, round_length=round_length, instead=instead, alone=alone, together=together
        )
        return self.growth.at is Phase.OVERTAKEN

    def _next(self, env: int, trusted: Sequence[bool]) -> None:
        """Choose who plays the next episode in an environment."""
        if self.growth is not None and self.claimed and trusted[-1]:
            self.playing[env] = len(trusted) - 1
            self.shown[env] = self.growth.begin()
            return
        player = self._draw(trusted)
        self.playing[env], self.shown[env] = player, player in self.sources
        if player < 0 and bool(self.get_buffer("believes")):
            self._begun += 1
            self.shown[env] = self._begun % SHOW_EVERY == 0

    def _draw(self, trusted: Sequence[bool]) -> int:
        """Who plays the next episode alone; -1 for nobody, as always without a probe, when the fresh pathway may be as good as any."""
        if not bool(self.get_buffer("believes")):
            return -1
        members = [index for index, stays in enumerate(trusted) if stays]
        first = self._unjudged(members)
        if first is not None and (self.remaining > 1 - JUDGING or self.in_doubt):
            return first
        if np.random.random() >= self.share * self.remaining:
            return -1
        chances = np.exp(-self.get_buffer("lag").double().cpu().numpy()[members] / 2)
        drawn = int(np.random.choice(members, p=chances / chances.sum()))
        return drawn if self._would_tell(drawn, members) else -1

    def _would_tell(self, pathway: int, members: Sequence[int]) -> bool:
        """Whether another episode of a pathway alone would help to tell who earns more.

        It would where some other, or all together, is not surely better or worse, unless it has played `OFTEN` as many: then an episode of
        theirs would.
        """
        own = self.standing.of(pathway)
        others = [self.standing.of(index) for index in members if index != pathway] + [self.together.of(0)]
        if len(own) < ENOUGH:
            return True
        near = [other for other in others if len(other) >= ENOUGH and abs(surely_behind(own, other)) <= RACE_ERRORS]
        return any(len(own) < OFTEN * len(other) for other in near)

    @property
    def _enough(self) -> int:
        """Episodes that each must have played to be judged: beside those in doubt fewer, once it is late."""
        if not self.in_doubt:
            return ENOUGH
        return DOUBTED if self.remaining > 1 - JUDGING else LEAST

    def _unjudged(self, members: Sequence[int]) -> int | None:
        """Who has played least of those to be judged, with what is being played, if that is not enough yet; nobody if there is but one.

        These are the sources, and beside those in doubt the fresh pathway.
        """
        judged = [index for index in members if self.in_doubt or self.standing.names[index] != FRESH]
        counts = self.standing.get_buffer("counts")
        played = {index: int(counts[index]) + int((self.playing == index).sum()) for index in judged}
        if len(judged) < 2 or min(played.values()) >= self._enough:
            return None
        return min(played, key=lambda index: played[index])
