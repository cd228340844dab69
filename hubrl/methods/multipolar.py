"""MULTIPOLAR: what the sources would do, scaled and averaged, plus a residual network."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.methods.single import the_one
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


@register("multipolar")
class Multipolar(Method):
    """The mean of the sources' actions, each scaled by learned factors, plus an auxiliary network (Barekatain et al. 2020).

    `F(s) = (1/K) sum_i theta_i * a_i(s) + F_aux(s)`, with a factor for every source and action dimension that starts at
    one, whatever is observed. For continuous actions `a_i` is the source's mean and `F` the mean of a Gaussian whose
    standard deviation is the target's own; for discrete ones `a_i` is one-hot, as in the authors' code, and `F` are logits, or
    DQN's Q-values [ours].
    `F_aux` is the network that SB3 builds for the algorithm, whose last layer SB3 starts near zero for PPO and A2C.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the only one to be heard (`K = 1`); all of them if not given.
    """

    summary = "sources' actions scaled by learned factors, averaged, plus a residual network (IJCAI 2020)"
    levels = ("outputs",)
    aggregation = "whole"
    own_std = True
    corrects = False
    serves_q_values = True

    def __init__(self, sources: Sequence[Source], target: Target, *, source: str | None = None) -> None:
        if not sources:
            raise BadConfig("Method 'multipolar' needs a source; the hub has none.")
        heard = sources if source is None else [the_one(sources, source, "multipolar")]
        super().__init__(Pathways(heard, target, fresh=True))
        self.discrete = isinstance(target.action_space, spaces.Discrete)
        n_actions = self.pathways.width if self.discrete else self.pathways.width // 2
        self.theta = nn.Parameter(torch.ones(len(heard), n_actions))

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """Scale, average, add the auxiliary network."""
        assert fresh is not None
        active = torch.ones(len(fresh), len(self.pathways.names), dtype=torch.bool, device=fresh.device)
        said = self.pathways.speak(observations, active, fresh)[:, :-1]
        aggregated = aggregate_actions(self.actions(said), self.theta)
        if self.discrete:
            return Routed(aggregated + fresh, fresh.new_zeros(()))
        mean, log_std = fresh.chunk(2, dim=1)
        return Routed(torch.cat([aggregated + mean, log_std], dim=1), fresh.new_zeros(()))

    def actions(self, said: Float[Tensor, "batch sources outputs"]) -> Float[Tensor, "batch sources actions"]:
        """What the sources would do: their means, or the likeliest choices as one-hot vectors."""
        if self.discrete:
            return functional.one_hot(said.argmax(dim=2), said.shape[2]).to(said.dtype)
        return said.chunk(2, dim=2)[0]

    def measures(self) -> dict[str, float]:
        """Each source's factor, averaged over actions."""
        return {f"multipolar/theta/{name}": theta.mean().item() for name, theta in zip(self.pathways.names, self.theta, strict=False)}


def aggregate_actions(
    actions: Float[Tensor, "batch sources actions"], theta: Float[Tensor, "sources actions"]
) -> Float[Tensor, "batch actions"]:
    """`(1/K) sum_i theta_i * a_i` (Barekatain et al. 2020, the aggregation before the auxiliary network)."""
    return (actions * theta).mean(dim=1)
