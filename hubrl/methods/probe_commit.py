"""The control of a probe alone: its best source, and nothing else."""

from collections.abc import Sequence

import numpy as np
import torch

from hubrl.methods.hub_pathway import HubPathway
from hubrl.methods.registry import register
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import TargetSpec
from hubrl.sources.source import Source


@register("probe-commit")
class ProbeCommit(HubPathway):
    """One pathway alone: the best of a probe, or the fresh one if no source is better than it.

    Without a probe it is `hub-pathway` without noise.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        width: Width of the features; by default the widest source's, at most 128.
        hidden_dim: Width of the router's two hidden layers, without effect behind a probe.
    """

    summary = "the best source of a probe alone: a control"
    judging_share = 0.0
    q_learning = None

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        width: int | None = None,
        hidden_dim: int = 64,
    ) -> None:
        super().__init__(
            sources, target, width=width, hidden_dim=hidden_dim, noise=False, explore_coef=0.0
        )

    @torch.no_grad()
    def apply_probe(
        self, kept: Sequence[bool], start: Sequence[float], returns: Sequence[float] = ()
    ) -> None:
        """Keep the best source that is kept, or else the fresh pathway."""
        names = self.pathways.names
        sources = [index for index, stays in enumerate(kept) if stays and names[index] != FRESH]
        best = names.index(FRESH)
        if sources:
            best = max(sources, key=lambda index: returns[index] if returns else 0.0)
        super().apply_probe(np.eye(len(names), dtype=bool)[best].tolist(), start, returns)
