"""The rival that a probe alone makes: find the best source, and keep to it."""

from collections.abc import Sequence

import numpy as np
import torch

from hubrl.methods.hub_pathway import HubPathway
from hubrl.methods.registry import register
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import Target
from hubrl.sources.source import Source


@register("probe-commit")
class ProbeCommit(HubPathway):
    """One pathway has all the say: the best of a probe; the fresh one if no source is better than it.

    Without a probe all pathways have their say, as in `hub-pathway` without noise.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        width: Width of the features; the widest source's if not given, but at most 128.
        hidden_dim: Width of the router's two hidden layers, which do nothing once there is only one pathway.
    """

    summary = "the best source of a probe alone: a control"
    judging_share = 0.0

    def __init__(self, sources: Sequence[Source], target: Target, *, width: int | None = None, hidden_dim: int = 64) -> None:
        super().__init__(sources, target, width=width, hidden_dim=hidden_dim, noise=False, explore_coef=0.0)

    @torch.no_grad()
    def trust(self, kept: Sequence[bool], start: Sequence[float], worth: Sequence[float] = ()) -> None:
        """Keep the best of those that are kept; a source, if there is one."""
        names = self.pathways.names
        sources = [index for index, stays in enumerate(kept) if stays and names[index] != FRESH]
        best = max(sources, key=lambda index: worth[index] if worth else 0.0) if sources else names.index(FRESH)
        super().trust(np.eye(len(names), dtype=bool)[best].tolist(), start, worth)
