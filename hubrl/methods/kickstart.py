"""Kickstarting: a student learns from reward and, less and less, from its teachers."""

from collections.abc import Sequence
from typing import Annotated

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.formats.search import Between
from hubrl.methods.base import Routed, TeacherMethod
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.routing.weights import device_of, n_rows
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("kickstart")
class Kickstart(TeacherMethod):
    """A new network pulled towards the sources (Schmitt et al. 2018, eq. 2 and section 3.3).

    The loss `coef * (1/K) sum_i H(pi_i || pi)` is added to the algorithm's: the cross-entropy of
    each source's and the student's action distributions in the states that the student visits. Its
    coefficient falls linearly to zero; the paper anneals it by population based training [new].
    Under DQN the student's distribution is a softmax over its Q-values.

    Args:
        sources: The teachers, in order.
        target: The target's spaces and level.
        coef: Initial coefficient of the distillation loss; at least 0.
        anneal: Share of the training after which the coefficient is zero; above 0, at most 1.
            Needs HubCallback, without which the coefficient stays.
    """

    summary = "a new network pulled towards what the sources would do, less and less (2018)"
    levels = ("outputs",)
    aggregation = "whole"
    keeps_source_std = True
    allows_residual = False
    keeps_frozen = True
    loss_name = "kickstart"
    q_learning = "teachers"

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        coef: Annotated[float, Between(0.1, 3.0, log=True)] = 1.0,
        anneal: Annotated[float, Between(0.1, 0.9)] = 0.5,
    ) -> None:
        if not sources:
            raise BadConfig("Method 'kickstart' needs a teacher; the hub has none.")
        check_annealing(coef, anneal)
        super().__init__(Pathways(sources, target, fresh=True))
        self.discrete = isinstance(target.action_space, spaces.Discrete)
        self.coef, self.anneal = float(coef), float(anneal)

    @property
    def coef_now(self) -> float:
        """Coefficient of the distillation loss at this point of the training."""
        return annealed(self.coef, self.anneal, self.progress_remaining)

    @property
    def trusted_pathways(self) -> list[bool]:
        """Whether each pathway is computed: the teachers while they teach."""
        return [self.coef_now > 0] * len(self.pathways.sources) + [True]

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Output of the student; in a gradient step with the distillation loss."""
        assert fresh is not None
        if self.coef_now == 0 or not (self.training and torch.is_grad_enabled()):
            return Routed(fresh, fresh.new_zeros(()))
        taught = self.teach(observations, source_outputs)
        cross = cross_entropy(taught, fresh, discrete=self.discrete)
        return Routed(fresh, self.coef_now * cross.mean())

    @torch.no_grad()
    def teach(
        self, observations: Observations, source_outputs: SourceOutputs | None = None
    ) -> Float[Tensor, "batch sources outputs"]:
        """Outputs of the teachers."""
        n_sources = len(self.pathways.sources)
        shape = n_rows(observations), n_sources
        active = torch.ones(shape, dtype=torch.bool, device=device_of(observations))
        outputs = self.pathways.compute_outputs(observations, active, None, source_outputs)
        return outputs[:, :n_sources]

    def measures(self) -> dict[str, float]:
        """The coefficient."""
        return {"kickstart/coef": self.coef_now}


def check_annealing(coef: float, anneal: float) -> None:
    """Refuse a coefficient or a share out of range.

    Raises:
        BadConfig: With the ranges.
    """
    if coef < 0 or not 0 < anneal <= 1:
        raise BadConfig(
            f"coef={coef} and anneal={anneal} were given; expected coef of at least 0, and anneal "
            "above 0 and at most 1."
        )


def annealed(coef: float, anneal: float, progress_remaining: float) -> float:
    """A coefficient that falls linearly to zero within a share of the training."""
    return coef * max(1 - (1 - progress_remaining) / anneal, 0.0)


def cross_entropy(
    taught: Float[Tensor, "batch sources outputs"],
    student: Float[Tensor, "batch outputs"],
    *,
    discrete: bool,
) -> Float[Tensor, "batch sources"]:
    """Cross-entropy H(taught || student) of action distributions, in nats.

    Of two Gaussians `log s + (t^2 + (m_t - m)^2) / (2 s^2) + log(2 pi) / 2`, summed over actions,
    with the teacher's mean `m_t` and deviation `t` and the student's `m` and `s`.
    """
    if discrete:
        return -(taught.exp() * student.log_softmax(dim=1)[:, None]).sum(dim=2)
    mean, log_std = student[:, None].chunk(2, dim=2)
    taught_mean, taught_log_std = taught.chunk(2, dim=2)
    squared = (2 * taught_log_std).exp() + (taught_mean - mean).square()
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    each = log_std + squared / (2 * (2 * log_std).exp()) + constant
    return each.sum(dim=2)
