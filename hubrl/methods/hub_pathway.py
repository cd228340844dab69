"""Hub-Pathway: a noisy router decides which pathways speak, and how much each counts."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.methods.base import Routed, Weighing
from hubrl.methods.registry import register
from hubrl.nn.losses import exploration_entropy
from hubrl.routing.fused import weighed
from hubrl.routing.pathways import FRESH, Pathways
from hubrl.routing.router import Router
from hubrl.routing.target import Target
from hubrl.routing.weights import Weighted, pathway_weights
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

NOTHING = torch.zeros(())
"""A loss that is none, where one is made in every step."""


@register("hub-pathway")
class HubPathway(Weighing):
    """Data-dependent pathway weights over the sources and a fresh pathway (Shu et al., NeurIPS 2022).

    The parts are the paper's: a noisy pathway generator, top-k routes at the input, aggregation at the output, an
    exploration loss. Their equations are our reconstruction (`docs/methods/hub-pathway.md`), and the fresh pathway is ours.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        top_k: How many pathways are active for an observation, at most as many as there are sources; all if not given.
        fresh: Whether a fresh pathway is a member.
        width: Width of the aggregated features; the widest source's if not given, but at most 128.
        hidden_dim: Width of the router's two hidden layers.
        router_reads: What the router reads: `observations` or, at the level of features, all sources' own `features`.
        noise: Whether the router is noisy in training; if not given, where the noise can be replayed (level of outputs).
        explore_coef: Coefficient of the exploration loss, the negative entropy of the mean weights.
    """

    summary = "noisy router, top-k routes, aggregation, exploration loss (NeurIPS 2022)"
    judging_share = 0.25
    takes_heard = True

    def __init__(
        self,
        sources: Sequence[Source],
        target: Target,
        *,
        top_k: int | None = None,
        fresh: bool = True,
        width: Annotated[int, Field(ge=1)] | None = None,
        hidden_dim: Annotated[int, Field(ge=1)] = 64,
        router_reads: str = "observations",
        noise: bool | None = None,
        explore_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.001,
    ) -> None:
        super().__init__(Pathways(sources, target, fresh=fresh, width=width))
        n_pathways = len(self.pathways.names)
        check_top_k(top_k, len(sources))
        self.top_k = top_k or n_pathways
        if noise and target.level == "features":
            raise BadConfig(
                "noise=True was given at the level of features, where it cannot be replayed; use level='outputs', or leave it out."
            )
        self.noise = target.level == "outputs" if noise is None else noise
        self.explore_coef = explore_coef
        check_router_reads(router_reads, target)
        self.router_reads = router_reads
        read = target.observation_space
        if router_reads == "features":
            read = spaces.Box(-np.inf, np.inf, (sum(self.pathways.widths),))
        self.router = Router(read, n_pathways, hidden_dim, target.precision)
        self.register_buffer("trusted", torch.ones(n_pathways, dtype=torch.bool))
        self.register_buffer("probed", torch.zeros((), dtype=torch.bool))
        self._trusted: list[bool] | None = None

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """Route, let the active pathways speak, aggregate."""
        heard = self.pathways.side_by_side(observations) if self.router_reads == "features" else None
        if heard is not None and noise is None and self._is_plain:
            made = self.pathways.routed_together(heard, self.router, self.explore_coef)
            return Routed(made.features, made.loss, None, made.log_weights)
        (log_weights, active), loss = self.weigh(observations if heard is None else heard, noise)
        with self.pathways.reminded(heard):
            speech = self.pathways.speak(observations, active, fresh)
        return Routed(None, loss, speech, log_weights)

    @property
    def _is_plain(self) -> bool:
        """Whether all sources and nobody else are weighed alike at the level of features, which is one operation (`hubrl.aggregation`)."""
        everybody = self.top_k >= len(self.pathways.names) and all(self.trusted_pathways)
        return self.explore_coef > 0 and everybody and self.pathways.fresh is None and self.pathways.target.level == "features"

    def weigh(self, observations: Observations, noise: Tensor | None = None) -> tuple[Weighted, Float[Tensor, ""]]:
        """What the router says of what it reads."""
        # Known without a look at the device.
        trusted = None if all(self.trusted_pathways) else self.get_buffer("trusted")
        if noise is not None and torch.is_grad_enabled():
            coef = self.explore_coef if self.training else 0.0
            weighted, loss = weighed(self.router, observations, noise, self.top_k, trusted, coef)
            return weighted, loss if self.training else self._exploration_loss(weighted.log_weights, trusted)
        weighted = pathway_weights(self.router(observations, noise), self.top_k, trusted)
        return weighted, self._exploration_loss(weighted.log_weights, trusted)

    def draw_noise(self, observations: Observations, key: int) -> Float[Tensor, "batch pathways"] | None:
        """The router's, if it is noisy."""
        return self.router.draw_noise(observations, key) if self.noise else None

    @property
    def noisy(self) -> bool:
        """Whether the router is."""
        return self.noise

    def _exploration_loss(
        self, log_weights: Float[Tensor, "batch pathways"], trusted: Bool[Tensor, " pathways"] | None
    ) -> Float[Tensor, ""]:
        if self.explore_coef == 0 or not torch.is_grad_enabled():
            # Not even a zero may be injected where the gradient is differentiated again (TRPO).
            return NOTHING
        weights = log_weights.exp()
        loss: Tensor = self.explore_coef * exploration_entropy(weights if trusted is None else weights[:, trusted])
        return loss

    @torch.no_grad()
    def trust(self, kept: Sequence[bool], start: Sequence[float], worth: Sequence[float] = ()) -> None:
        """Drop pathways for good, and start the router where a probe says."""
        if not any(kept):
            raise BadConfig("A probe dropped every pathway; at least one must stay.")
        self.get_buffer("trusted").copy_(torch.as_tensor(list(kept)))
        self._trusted = None
        self.router.mean.bias.copy_(torch.as_tensor(list(start)))
        self.get_buffer("probed").fill_(True)

    @property
    def trusted_pathways(self) -> list[bool]:
        """For every pathway, whether a probe left it in."""
        if self._trusted is None:
            # Asked several times a step; the buffer changes by `trust` and by loading alone.
            self._trusted = self.get_buffer("trusted").tolist()
        return list(self._trusted)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._trusted = None

    @property
    def reads_observations(self) -> bool:
        """Whether the fresh pathway or the router does."""
        return super().reads_observations or self.router_reads == "observations"

    @property
    def reads_bytes(self) -> bool:
        """Whether its pathways and its router do."""
        return self.pathways.reads_bytes and (self.router_reads == "features" or self.router.reads_bytes)

    @property
    def awaits_probe(self) -> bool:
        """Whether there is a fresh pathway to compare the sources with, and no probe has done so."""
        return FRESH in self.pathways.names and len(self.pathways.names) > 1 and not bool(self.get_buffer("probed"))

    @property
    def fresh_alone(self) -> bool:
        """Whether every source was dropped."""
        trusted = self.trusted_pathways
        return self.pathways.names[-1] == FRESH and trusted[-1] and not any(trusted[:-1])


def check_router_reads(router_reads: str, target: Target) -> None:
    """Refuse what the router cannot read.

    Raises:
        BadConfig: If it is neither `observations` nor `features`, or features at the level of outputs.
    """
    if router_reads not in ("observations", "features"):
        raise BadConfig(f"router_reads={router_reads!r} was given; expected 'observations' or 'features'.")
    if router_reads == "features" and target.level == "outputs":
        raise BadConfig("router_reads='features' was given at the level of outputs; use level='features', or leave it out.")


def check_top_k(top_k: int | None, n_sources: int) -> None:
    """Refuse a number of active pathways that cannot be.

    Raises:
        BadConfig: If it is below one or above the number of sources.
    """
    if top_k is not None and not 1 <= top_k <= n_sources:
        raise BadConfig(f"top_k={top_k} was given for a hub of {n_sources} sources; expected 1 to {n_sources}, or none for all pathways.")
