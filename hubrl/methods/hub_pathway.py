"""Hub-Pathway: a noisy router selects pathways and weighs them."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.formats.search import Between, OneOf
from hubrl.methods.base import QLearning, Routed, RoutedMethod
from hubrl.methods.registry import register
from hubrl.nn.manual_gradients import is_tracing
from hubrl.routing.pathways import FRESH, Pathways, SourceOutputs
from hubrl.routing.router import Router, Routing
from hubrl.routing.target import TargetSpec
from hubrl.routing.weights import PathwayWeights, exploration_entropy, pathway_weights
from hubrl.selection.settings import TrustSettings
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

ZERO = torch.zeros(())
"""A loss of zero, made once because every step needs it."""


@register("hub-pathway")
class HubPathway(RoutedMethod):
    """Data-dependent weights of the sources and a fresh pathway (Shu et al., NeurIPS 2022).

    The parts are the paper's: a noisy pathway generator, top-k routes at the input, aggregation at
    the output, an exploration loss. The equations are hubrl's reconstruction
    (`docs/methods/hub-pathway.md`), and the fresh pathway is an addition of hubrl.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        top_k: Active pathways for an observation, at most as many as there are sources; by default
            all.
        fresh: Whether a fresh pathway is one of them.
        width: Width of the aggregated features; by default the widest source's, at most 128.
        hidden_dim: Width of the router's two hidden layers.
        router_reads: Input of the router: `observations` or, at the level of features, the
            `features` of all sources.
        noise: Whether the router is noisy in training; by default at the level of outputs, where
            noise can be replayed.
        explore_coef: Coefficient of the exploration loss, the negative entropy of the mean weights.
    """

    summary = "noisy router, top-k routes, aggregation, exploration loss (NeurIPS 2022)"
    judging_share = TrustSettings.judging_share
    needs_only_features = True
    q_learning: ClassVar[QLearning | None] = "explorers"
    router: Router

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        top_k: int | None = None,
        fresh: bool = True,
        width: Annotated[int, Field(ge=1)] | None = None,
        hidden_dim: Annotated[int, Field(ge=1), OneOf((32, 64, 128))] = 64,
        router_reads: str = "observations",
        noise: bool | None = None,
        explore_coef: Annotated[
            float, Field(ge=0, allow_inf_nan=False), Between(1e-4, 0.1, log=True)
        ] = 0.001,
    ) -> None:
        super().__init__(Pathways(sources, target, fresh=fresh, width=width))
        n_pathways = len(self.pathways.names)
        check_top_k(top_k, len(sources))
        check_router_reads(router_reads, target)
        if noise and target.level == "features":
            raise BadConfig(
                "noise=True was given at the level of features, where it cannot be replayed; use "
                "level='outputs', or leave it out."
            )
        self.top_k = top_k or n_pathways
        self.noise = target.level == "outputs" if noise is None else noise
        self.explore_coef = explore_coef
        self.router_reads = router_reads
        space = target.observation_space
        if router_reads == "features":
            space = spaces.Box(-np.inf, np.inf, (sum(self.pathways.widths),))
        self.router = Router(space, n_pathways, hidden_dim, target.precision)
        self.register_buffer("trusted", torch.ones(n_pathways, dtype=torch.bool))
        self.register_buffer("probed", torch.zeros((), dtype=torch.bool))
        self._trusted: list[bool] | None = None

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Weights of the router, and outputs of the active pathways."""
        router_inputs = observations
        if self.router_reads == "features":
            features = self.pathways.concatenated_features(observations, source_outputs)
            if noise is None and self._is_fused:
                fused = self.pathways.fused_aggregate(features, self.router, self.explore_coef)
                return Routed(fused.features, fused.loss, None, fused.log_weights)
            router_inputs = source_outputs = features
        (log_weights, active), loss = self.compute_weights(router_inputs, noise)
        if self._skips_inactive and source_outputs is None:
            features = self.pathways.aggregate_active(observations, log_weights.exp(), active)
            return Routed(features, loss, None, log_weights)
        outputs = self.pathways.compute_outputs(observations, active, fresh, source_outputs)
        return Routed(None, loss, outputs, log_weights)

    @property
    def _skips_inactive(self) -> bool:
        """Whether features of the active pathways alone are computed and kept."""
        target, some = self.pathways.target, self.top_k < len(self.pathways.names)
        # In bfloat16 all sources are one network, which costs little more than one of them.
        in_one = target.precision != "float32" and len(self.pathways.sources) > 1
        return some and target.level == "features" and not in_one and not is_tracing()

    @property
    def _is_fused(self) -> bool:
        """Whether `Pathways.fused_aggregate` serves: all sources active, no fresh pathway."""
        every = self.top_k >= len(self.pathways.names) and all(self.trusted_pathways)
        without_fresh = self.pathways.fresh is None and self.pathways.target.level == "features"
        return self.explore_coef > 0 and every and without_fresh and not is_tracing()

    def compute_weights(
        self, observations: Observations, noise: Tensor | None = None
    ) -> tuple[PathwayWeights, Float[Tensor, ""]]:
        """Pathway weights for the router's inputs, and the exploration loss."""
        # From Python's list, so that the device is not waited for.
        trusted = None if all(self.trusted_pathways) else self.get_buffer("trusted")
        weights = pathway_weights(self.router(observations, noise), self.top_k, trusted)
        return weights, self._exploration_loss(weights.log_weights, trusted)

    @property
    def routing(self) -> Routing:
        """The router, and how its logits become weights."""
        trusted = None if all(self.trusted_pathways) else self.get_buffer("trusted")
        return Routing(self.router, self.noise, self.top_k, trusted, self.explore_coef)

    def draw_noise(
        self, observations: Observations, key: int
    ) -> Float[Tensor, "batch pathways"] | None:
        """Noise of the router, if it is noisy."""
        return self.router.draw_noise(observations, key) if self.noise else None

    @property
    def noisy(self) -> bool:
        """Whether the router is noisy."""
        return self.noise

    def _exploration_loss(
        self,
        log_weights: Float[Tensor, "batch pathways"],
        trusted: Bool[Tensor, " pathways"] | None,
    ) -> Float[Tensor, ""]:
        if self.explore_coef == 0 or not torch.is_grad_enabled():
            # Without a gradient, because TRPO differentiates gradients again.
            return ZERO
        weights = log_weights.exp()
        entropy = exploration_entropy(weights if trusted is None else weights[:, trusted])
        loss: Tensor = self.explore_coef * entropy
        return loss

    @torch.no_grad()
    def apply_probe(
        self, kept: Sequence[bool], start: Sequence[float], returns: Sequence[float] = ()
    ) -> None:
        """Drop pathways for good, and set the router's initial logits."""
        if not any(kept):
            raise BadConfig("A probe dropped every pathway; at least one must stay.")
        self.get_buffer("trusted").copy_(torch.as_tensor(list(kept)))
        self._trusted = None
        self.router.mean.bias.copy_(torch.as_tensor(list(start)))
        self.get_buffer("probed").fill_(True)

    @torch.no_grad()
    def admit(self, source: int) -> None:
        """Let a source be active from now on; its logit starts at the greatest bias of a source."""
        trusted, bias = self.get_buffer("trusted"), self.router.mean.bias
        known = bias[: len(self.pathways.sources)][trusted[: len(self.pathways.sources)]]
        bias[source] = known.max() if len(known) else 0.0
        trusted[source] = True
        self._trusted = None

    @property
    def trusted_pathways(self) -> list[bool]:
        """Whether a probe kept each pathway; not to be written to."""
        if self._trusted is None:
            # Read in every step; the buffer changes by `apply_probe` and by loading alone.
            self._trusted = self.get_buffer("trusted").tolist()
        return self._trusted

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._trusted = None

    @property
    def reads_observations(self) -> bool:
        """Whether the fresh pathway or the router reads observations."""
        return super().reads_observations or self.router_reads == "observations"

    @property
    def reads_bytes(self) -> bool:
        """Whether its pathways and its router read undivided uint8 images."""
        router_reads_bytes = self.router_reads == "features" or self.router.reads_bytes
        return self.pathways.reads_bytes and router_reads_bytes

    @property
    def awaits_probe(self) -> bool:
        """Whether it has a fresh pathway to compare sources with, and no probe has been applied."""
        names = self.pathways.names
        return FRESH in names and len(names) > 1 and not bool(self.get_buffer("probed"))

    @property
    def fresh_alone(self) -> bool:
        """Whether every source was dropped."""
        trusted = self.trusted_pathways
        return trusted[-1] and not any(trusted[:-1]) and self.pathways.names[-1] == FRESH


def check_router_reads(router_reads: str, target: TargetSpec) -> None:
    """Refuse an input that the router cannot have.

    Raises:
        BadConfig: If it is neither `observations` nor `features`, or features at the level of
            outputs.
    """
    if router_reads not in ("observations", "features"):
        raise BadConfig(
            f"router_reads={router_reads!r} was given; expected 'observations' or 'features'."
        )
    if router_reads == "features" and target.level == "outputs":
        raise BadConfig(
            "router_reads='features' was given at the level of outputs; use level='features', or "
            "leave it out."
        )


def check_top_k(top_k: int | None, n_sources: int) -> None:
    """Refuse a number of active pathways below one or above the number of sources.

    Raises:
        BadConfig: With the range.
    """
    if top_k is not None and not 1 <= top_k <= n_sources:
        raise BadConfig(
            f"top_k={top_k} was given for a hub of {n_sources} sources; expected 1 to {n_sources}, "
            "or none for all pathways."
        )
