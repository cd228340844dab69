"""Losses of transfer, and how they reach an algorithm that knows nothing of them."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hubrl.errors import BadConfig


def exploration_entropy(weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, ""]:
    """Negative entropy of the batch's mean pathway weights, in nats [ours, after Hub-Pathway's exploration loss].

    Zero when one pathway carries the whole batch; `-log(pathways)` when all carry the same.

    Args:
        weights: Pathway weights; every row sums to one.
    """
    entropy: Tensor = _MeanEntropy.apply(weights)  # type: ignore[no-untyped-call]
    return entropy


class _MeanEntropy(torch.autograd.Function):
    """`sum_i p_i log p_i` of the mean of some rows, with its gradient by hand: an update asks for it at every minibatch."""

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


def mean_entropy(weights: Float[Tensor, "batch pathways"]) -> tuple[Float[Tensor, ""], Float[Tensor, " pathways"]]:
    """`sum_i p_i log p_i` of the mean of some rows, and its derivative by the numbers of each row."""
    share = weights.mean(dim=0)
    # The clamp keeps the gradient of a pathway that nobody chose finite.
    logarithms = share.clamp_min(1e-8).log()
    return share.dot(logarithms), (logarithms + 1) / len(weights)


def load_balance(weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the weight that each pathway carries (Shazeer et al. 2017, eq. 6).

    Zero when all carry the same; `pathways - 1` when one carries the whole batch.

    Args:
        weights: Pathway weights; every row sums to one.
    """
    importance = weights.sum(dim=0)
    return importance.var(unbiased=False) / importance.mean().square()


def entropy_nats(weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, " batch"]:
    """Entropy of every row of pathway weights, in nats: zero for one pathway, `log(pathways)` for equal ones."""
    entropy: Tensor = -torch.special.xlogy(weights, weights).sum(dim=1)
    return entropy


def drift(
    now: Float[Tensor, "batch sources outputs"], before: Float[Tensor, "batch sources outputs"], space: spaces.Space[Any]
) -> Float[Tensor, "batch sources"]:
    """How far what is said now is from what was said before [ours]: the divergence KL(before || now), in nats.

    For continuous actions that of two Gaussians with the former standard deviation: `sum_a (m' - m)^2 / (2 s^2)`, so that
    the standard deviation itself is free.

    Args:
        now: Speech, with a gradient.
        before: Speech, without one.
        space: Box or Discrete.
    """
    if isinstance(space, spaces.Discrete):
        return (before.exp() * (before.log_softmax(dim=2) - now.log_softmax(dim=2))).sum(dim=2)
    mean, (former, log_std) = now.chunk(2, dim=2)[0], before.chunk(2, dim=2)
    return ((mean - former).square() / (2 * (2 * log_std).exp())).sum(dim=2)


def kickstarting(
    learner: Float[Tensor, "batch 1 outputs"], teachers: Float[Tensor, "batch sources outputs"], space: spaces.Space[Any]
) -> Float[Tensor, "batch sources"]:
    """How far a learner is from what each teacher does (Schmitt et al. 2018, eq. 2): KL(teacher || learner), in nats.

    For continuous actions with the learner's standard deviation for both [ours], `sum_a (m' - m)^2 / (2 s^2)`, so that a learner is
    not made as sharp as its teachers.

    Args:
        learner: Speech, with a gradient.
        teachers: Speech, without one.
        space: Box or Discrete.
    """
    learner = learner.expand_as(teachers)
    if isinstance(space, spaces.Discrete):
        return drift(learner, teachers, space)
    mean, log_std = teachers.chunk(2, dim=2)[0], learner.detach().chunk(2, dim=2)[1]
    return drift(learner, torch.cat([mean, log_std], dim=2), space)


TWICE = "This algorithm differentiates its gradient (TRPO does), through which a loss cannot be injected; set explore_coef=0."


class _Inject(torch.autograd.Function):
    """Identity whose backward pass adds the gradient of a second loss."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor) -> Tensor:
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise BadConfig(TWICE)
        gradient = gradients[0]
        return gradient, gradient.new_ones(())


def inject(carrier: Float[Tensor, "*any"], loss: Float[Tensor, ""]) -> Float[Tensor, "*any"]:
    """Return `carrier` unchanged, and add `loss` to whatever loss is computed from it.

    The gradient of `loss` arrives with coefficient one, however the carrier is used, provided it is used once.

    Raises:
        BadConfig: In the backward pass, if the algorithm differentiates its gradient.
    """
    injected: Tensor = _Inject.apply(carrier, loss)  # type: ignore[no-untyped-call]
    return injected
