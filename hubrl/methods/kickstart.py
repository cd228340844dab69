"""Kickstarting: a student learns from reward and from what its teachers would do, less and less."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("kickstart")
class Kickstart(Method):
    """A new network acts alone and is pulled towards the sources (kickstarting, Schmitt et al. 2018, eq. 2 and section 3.3).

    The loss `coef * (1/K) sum_i H(pi_i || pi)` is added to the algorithm's: the cross-entropy between what each source and
    what the student would do in the states that the student visits. Its coefficient falls linearly to zero after a share
    of the training; the paper anneals by population based training, which is replaced by this schedule [ours]. Under DQN
    the student's part is a softmax over its Q-values, as in `hub-pathway`'s teaching.

    Args:
        sources: The teachers, in order.
        target: What they have to fit.
        coef: Coefficient of the distillation loss at the start; at least 0.
        anneal: Share of the training after which the coefficient is zero; above 0, at most 1. Needs HubCallback, without
            which the coefficient stays.
    """

    summary = "a new network pulled towards what the sources would do, less and less (Schmitt et al. 2018)"
    levels = ("outputs",)
    aggregation = "whole"
    own_std = True
    corrects = False
    keeps_frozen = True
    loss_name = "kickstart"

    def __init__(self, sources: Sequence[Source], target: Target, *, coef: float = 1.0, anneal: float = 0.5) -> None:
        if not sources:
            raise BadConfig("Method 'kickstart' needs a teacher; the hub has none.")
        check_annealing(coef, anneal)
        super().__init__(Pathways(sources, target, fresh=True))
        self.discrete = isinstance(target.action_space, spaces.Discrete)
        self.coef, self.anneal = float(coef), float(anneal)

    @property
    def coef_now(self) -> float:
        """The coefficient at this point of the training."""
        return annealed(self.coef, self.anneal, self.remaining)

    @property
    def trusted_pathways(self) -> list[bool]:
        """For every pathway, whether it may speak: the teachers as long as they are heard."""
        return [self.coef_now > 0] * len(self.pathways.sources) + [True]

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """What the student says; in a gradient step with the distillation loss."""
        assert fresh is not None
        if self.coef_now == 0 or not (self.training and torch.is_grad_enabled()):
            return Routed(fresh, fresh.new_zeros(()))
        cross = cross_entropy(self.teach(observations), fresh, discrete=self.discrete)
        return Routed(fresh, self.coef_now * cross.mean())

    @torch.no_grad()
    def teach(self, observations: Observations) -> Float[Tensor, "batch sources outputs"]:
        """What the teachers would do."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        n_sources = len(self.pathways.sources)
        active = torch.ones(len(rows), n_sources, dtype=torch.bool, device=rows.device)
        return self.pathways.speak(observations, active)[:, :n_sources]

    def measures(self) -> dict[str, float]:
        """The coefficient."""
        return {"kickstart/coef": self.coef_now}


def check_annealing(coef: float, anneal: float) -> None:
    """Refuse a schedule that cannot be.

    Raises:
        BadConfig: Saying the ranges.
    """
    if coef < 0 or not 0 < anneal <= 1:
        raise BadConfig(f"coef={coef} and anneal={anneal} were given; expected coef of at least 0, and anneal above 0 and at most 1.")


def annealed(coef: float, anneal: float, remaining: float) -> float:
    """A coefficient that falls linearly to zero after a share of the training, of which a share remains."""
    return coef * max(1 - (1 - remaining) / anneal, 0.0)


def cross_entropy(
    taught: Float[Tensor, "batch sources outputs"], said: Float[Tensor, "batch outputs"], *, discrete: bool
) -> Float[Tensor, "batch sources"]:
    """Cross-entropy H(taught || said) of action distributions given as speech, in nats.

    Of two Gaussians `log s + (t^2 + (m_t - m)^2) / (2 s^2) + log(2 pi) / 2`, summed over actions, with the teacher's mean
    `m_t` and standard deviation `t` and the student's `m` and `s`.
    """
    if discrete:
        return -(taught.exp() * said.log_softmax(dim=1)[:, None]).sum(dim=2)
    mean, log_std = said[:, None].chunk(2, dim=2)
    of_mean, of_log_std = taught.chunk(2, dim=2)
    squared = (2 * of_log_std).exp() + (of_mean - mean).square()
    each = log_std + squared / (2 * (2 * log_std).exp()) + 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return each.sum(dim=2)
