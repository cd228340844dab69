"""Losses of transfer, and their injection into SB3's algorithms, whose losses stay unchanged."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hubrl.errors import BadConfig


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


DIFFERENTIATED_TWICE = (
    "This algorithm differentiates its gradient (TRPO does), "
    "through which a loss cannot be injected; set explore_coef=0."
)


class _Inject(torch.autograd.Function):
    """Identity whose backward pass adds the gradient of a second loss."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor) -> Tensor:
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise BadConfig(DIFFERENTIATED_TWICE)
        gradient = gradients[0]
        return gradient, gradient.new_ones(())


def inject(carrier: Float[Tensor, "*any"], loss: Float[Tensor, ""]) -> Float[Tensor, "*any"]:
    """Return `carrier` unchanged, and add `loss` to any loss computed from it.

    The gradient of `loss` arrives with coefficient one, provided the carrier is used once.

    Raises:
        BadConfig: In the backward pass, if the algorithm differentiates its gradient.
    """
    injected: Tensor = _Inject.apply(carrier, loss)  # type: ignore[no-untyped-call]
    return injected
