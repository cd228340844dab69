"""MULTIPOLAR: the sources' actions, scaled and averaged, plus a residual network."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.methods.single import select_source
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("multipolar")
class Multipolar(Method):
    """Scaled mean of the sources' actions plus an auxiliary network (Barekatain et al. 2020).

    `F(s) = (1/K) sum_i theta_i * a_i(s) + F_aux(s)`, with a factor for every source and action
    dimension that starts at one. For continuous actions `a_i` is the source's mean and `F` the mean
    of a Gaussian with the target's own standard deviation; for discrete ones `a_i` is one-hot, as
    in the authors' code, and `F` are logits, or DQN's Q-values [new]. `F_aux` is the network that
    SB3 builds for the algorithm; its last layer starts near zero for PPO and A2C.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        source: Name of the only source to use (`K = 1`); by default all.
    """

    summary = (
        "sources' actions scaled by learned factors, averaged, plus a residual network (IJCAI 2020)"
    )
    levels = ("outputs",)
    aggregation = "whole"
    keeps_source_std = True
    allows_residual = False
    q_learning = "q_values"

    def __init__(
        self, sources: Sequence[Source], target: TargetSpec, *, source: str | None = None
    ) -> None:
        if not sources:
            raise BadConfig("Method 'multipolar' needs a source; the hub has none.")
        used = sources if source is None else [select_source(sources, source, "multipolar")]
        super().__init__(Pathways(used, target, fresh=True))
        self.discrete = isinstance(target.action_space, spaces.Discrete)
        n_actions = self.pathways.width if self.discrete else self.pathways.width // 2
        self.theta = nn.Parameter(torch.ones(len(used), n_actions))

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Scaled mean of the actions plus the auxiliary network's output."""
        assert fresh is not None
        shape = len(fresh), len(self.pathways.names)
        active = torch.ones(shape, dtype=torch.bool, device=fresh.device)
        outputs = self.pathways.compute_outputs(observations, active, fresh, source_outputs)
        aggregated = aggregate_actions(self.actions(outputs[:, :-1]), self.theta)
        if self.discrete:
            return Routed(aggregated + fresh, fresh.new_zeros(()))
        mean, log_std = fresh.chunk(2, dim=1)
        return Routed(torch.cat([aggregated + mean, log_std], dim=1), fresh.new_zeros(()))

    def actions(
        self, outputs: Float[Tensor, "batch sources outputs"]
    ) -> Float[Tensor, "batch sources actions"]:
        """Actions of the sources: their means, or the likeliest choices as one-hot vectors."""
        if self.discrete:
            return functional.one_hot(outputs.argmax(dim=2), outputs.shape[2]).to(outputs.dtype)
        return outputs.chunk(2, dim=2)[0]

    def measures(self) -> dict[str, float]:
        """Factor of each source, averaged over actions."""
        each = zip(self.pathways.names, self.theta, strict=False)
        return {f"multipolar/theta/{name}": theta.mean().item() for name, theta in each}


def aggregate_actions(
    actions: Float[Tensor, "batch sources actions"], theta: Float[Tensor, "sources actions"]
) -> Float[Tensor, "batch actions"]:
    """`(1/K) sum_i theta_i * a_i`, the aggregation before the auxiliary network."""
    return (actions * theta).mean(dim=1)
