"""Pathway weights by a top-k softmax, their entropy, and outputs dispatched and aggregated by them.

Equations [new, after Hub-Pathway, NeurIPS 2022]: the router has a logit `z` for every pathway; in
training `z + noise * (softplus(N(x)) + 0.01)` with Gaussian noise; the `k` greatest are active, and
a softmax over them gives the pathway weights.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hubrl.nn.manual_gradients import is_tracing
from hubrl.sources.preprocessing import Observations

FEW_PATHWAYS = 64
"""Pathways up to which a sort is the fastest way to the greatest; of 200 it takes six times as long
as a selection."""


class PathwayWeights(NamedTuple):
    """Weights of the pathways, and which of them are active."""

    log_weights: Float[Tensor, "batch pathways"]
    """Logarithms of the weights; minus infinity where not active."""
    active: Bool[Tensor, "batch pathways"]


def stable_top_k(z: Float[Tensor, "batch pathways"], k: int) -> Bool[Tensor, "batch pathways"]:
    """The `k` greatest of every row; of equals the first, which `torch.topk` does not promise."""
    if is_tracing():  # ONNX has no stable sort
        place = torch.arange(int(z.shape[1]), device=z.device)
        equal_before = (z[:, None] == z[:, :, None]) & (place[None] < place[:, None])
        return ((z[:, None] > z[:, :, None]) | equal_before).sum(dim=2) < k
    if z.shape[1] > FEW_PATHWAYS:
        least = z.topk(k, dim=1).values[:, -1:]
        greater, equal = z > least, z == least
        return greater | (equal & (equal.cumsum(dim=1) <= k - greater.sum(dim=1, keepdim=True)))
    order = z.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(z, dtype=torch.bool).scatter(1, order[:, :k], True)


def pathway_weights(
    z: Float[Tensor, "batch pathways"], k: int, trusted: Bool[Tensor, " pathways"] | None
) -> PathwayWeights:
    """A softmax over the `k` greatest logits among the trusted pathways.

    A softmax over all logits, masked and renormalised, gives the same weights.

    Args:
        z: The router's logits.
        k: Active pathways a row; fewer where fewer are trusted.
        trusted: Pathways that may be active; None for all.
    """
    if trusted is not None:
        z = z.masked_fill(~trusted, -torch.inf)
    active = stable_top_k(z, k) if k < z.shape[1] else torch.ones_like(z, dtype=torch.bool)
    if trusted is not None:
        active = active & trusted
    if k < z.shape[1]:
        z = z.masked_fill(~active, -torch.inf)
    return PathwayWeights(functional.log_softmax(z, dim=1), active)


def exploration_entropy(weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, ""]:
    """Negative entropy of the batch's mean pathway weights, in nats, after Hub-Pathway's loss.

    Zero when one pathway carries the whole batch; `-log(pathways)` when all carry the same.

    Args:
        weights: Pathway weights; every row sums to one.
    """
    entropy: Tensor = _MeanEntropy.apply(weights)  # type: ignore[no-untyped-call]
    return entropy


class _MeanEntropy(torch.autograd.Function):
    """`sum_i p_i log p_i` of the mean row, with a manual gradient: every minibatch computes it."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        entropy, slope = mean_entropy(weights)
        ctx.save_for_backward(slope)
        ctx.n_rows = len(weights)
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        scaled: Tensor = gradient * slope
        return scaled.expand(ctx.n_rows, -1)


def mean_entropy(
    weights: Float[Tensor, "batch pathways"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " pathways"]]:
    """`sum_i p_i log p_i` of the mean row `p`, and its derivative, the same for every row."""
    share = weights.mean(dim=0)
    # The clamp keeps the gradient of a pathway without any weight finite.
    logarithms = share.clamp_min(1e-8).log()
    return share.dot(logarithms), (logarithms + 1) / len(weights)


def entropy_nats(weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, " batch"]:
    """Entropy of each row of pathway weights, in nats: zero for one pathway, at most their log."""
    entropy: Tensor = -torch.special.xlogy(weights, weights).sum(dim=1)
    return entropy


def dispatch(
    pathways: Sequence[Callable[[Observations], Tensor]],
    observations: Observations,
    active: Bool[Tensor, "batch pathways"],
    width: int,
) -> Float[Tensor, "batch pathways width"]:
    """Outputs of the active pathways, computed for their rows alone; zeros for the others."""
    if is_tracing():
        # An exported graph has no branches: every pathway is computed, and masked.
        each = torch.stack([pathway(observations) for pathway in pathways], dim=1)
        return each.masked_fill(~active[:, :, None], 0.0)
    used, zeros = active.any(dim=0).tolist(), torch.zeros(len(active), width, device=active.device)
    columns = []
    for index, pathway in enumerate(pathways):
        if not used[index]:  # one of very many, perhaps
            columns.append(zeros)
            continue
        rows = active[:, index].nonzero().squeeze(1)
        if len(rows) == len(active):
            columns.append(pathway(observations))
        else:
            columns.append(zeros.index_copy(0, rows, pathway(take_rows(observations, rows))))
    return torch.stack(columns, dim=1)


def aggregate(
    outputs: Float[Tensor, "batch pathways width"], weights: Float[Tensor, "batch pathways"]
) -> Float[Tensor, "batch width"]:
    """Weighted sum of the pathways' outputs."""
    return torch.bmm(weights[:, None], outputs).squeeze(1)


def transition_log_probs(
    log_weights: Float[Tensor, "batch pathways"],
    previous: Int[Tensor, " batch"],
    stay_logit: Float[Tensor, "batch pathways"] | None = None,
) -> Float[Tensor, "batch pathways"]:
    """Log-probabilities of the next pathway given the previous one.

    Each pathway's stay logit `c_i` is added where it acted: `p = softmax(log w + c [i =
    previous])`; without one, the previous pathway acts again with certainty. Where none acted
    before, `p = w`. A commitment ends when its pathway is no longer active. The rule has no paper.

    Args:
        log_weights: Logarithms of pathway weights; minus infinity where a pathway is not active.
        previous: The previous pathway; below 0 for none.
        stay_logit: Of each pathway, in nats; none for infinity.
    """
    there = index_mask(previous, log_weights.shape[1])
    if stay_logit is not None:
        return functional.log_softmax(log_weights + there * stay_logit, dim=1)
    there = there & log_weights.isfinite()
    certain = torch.zeros_like(log_weights).masked_fill(~there, -torch.inf)
    return torch.where(there.any(dim=1, keepdim=True), certain, log_weights)


def certain_log_weights(
    pathway: Int[Tensor, " batch"], n_pathways: int
) -> Float[Tensor, "batch pathways"]:
    """Logarithms of pathway weights: 0 for one pathway per row, minus infinity for the rest."""
    logs = torch.full((len(pathway), n_pathways), -torch.inf, device=pathway.device)
    return logs.masked_fill(index_mask(pathway, n_pathways), 0.0)


def n_rows(observations: Observations) -> int:
    """Batch size of observations."""
    if isinstance(observations, dict):
        return len(next(iter(observations.values())))
    return len(observations)


def device_of(observations: Observations) -> torch.device:
    """Device of observations."""
    rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
    return rows.device


def index_mask(index: Int[Tensor, " batch"], n: int) -> Bool[Tensor, "batch n"]:
    """True at the index of every row, of `n`; nowhere in rows whose index is not among them."""
    return cached_arange(n, index.device) == index[:, None]


@lru_cache(maxsize=64)
def cached_arange(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """`torch.arange(n)`, made once because every step needs it; not to be written to."""
    return torch.arange(n, device=device)


def take_rows(observations: Observations, rows: Int[Tensor, " rows"]) -> Observations:
    """Some rows of observations, by their indices."""
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]
