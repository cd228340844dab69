"""Pathway weights, and what is computed and aggregated by them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from hubrl.sources.preprocessing import Observations


class Weighted(NamedTuple):
    """Who is active, and how much each contributes."""

    log_weights: Float[Tensor, "batch pathways"]
    """Minus infinity where not active."""
    active: Bool[Tensor, "batch pathways"]


def stable_top_k(z: Float[Tensor, "batch pathways"], k: int) -> Bool[Tensor, "batch pathways"]:
    """The `k` greatest of every row; of equals the first, which `torch.topk` does not promise."""
    order = z.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(z, dtype=torch.bool).scatter(1, order[:, :k], True)


def pathway_weights(z: Float[Tensor, "batch pathways"], k: int, trusted: Bool[Tensor, " pathways"] | None) -> Weighted:
    """Pathway weights: a softmax over the `k` greatest among the trusted.

    A softmax over all that is masked and renormalised gives the same weights, so there is no option for it.

    Args:
        z: The router's numbers.
        k: How many are active in a row; fewer where fewer are trusted.
        trusted: Who may be active at all; none for everybody.
    """
    if trusted is not None:
        z = z.masked_fill(~trusted, -torch.inf)
    active = stable_top_k(z, k) if k < z.shape[1] else torch.ones_like(z, dtype=torch.bool)
    if trusted is not None:
        active = active & trusted
    if k >= z.shape[1]:
        return Weighted(functional.log_softmax(z, dim=1), active)
    return Weighted(functional.log_softmax(z.masked_fill(~active, -torch.inf), dim=1), active)


def dispatch(
    speakers: Sequence[Callable[[Observations], Tensor]],
    observations: Observations,
    active: Bool[Tensor, "batch pathways"],
    width: int,
) -> Float[Tensor, "batch pathways width"]:
    """What every active pathway says; only they are computed, row by row. Zeros for the others."""
    columns = []
    for index, speak in enumerate(speakers):
        rows = active[:, index].nonzero().squeeze(1)
        if len(rows) == len(active):
            columns.append(speak(observations))
        else:
            silence = torch.zeros(len(active), width, device=active.device)
            columns.append(silence.index_copy(0, rows, speak(_rows(observations, rows))) if len(rows) else silence)
    return torch.stack(columns, dim=1)


def aggregate(speech: Float[Tensor, "batch pathways width"], weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, "batch width"]:
    """The weighted sum of what the pathways say."""
    return torch.bmm(weights[:, None], speech).squeeze(1)


def _rows(observations: Observations, rows: Tensor) -> Observations:
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]


def at(place: Int[Tensor, " batch"], n: int) -> Bool[Tensor, "batch n"]:
    """Where the place of every row is, of `n`; nowhere where it is not among them."""
    return places(n, place.device) == place[:, None]


@lru_cache(maxsize=64)
def places(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """The numbers from 0, which nobody may write to: asked for in every step and every minibatch."""
    return torch.arange(n, device=device)
