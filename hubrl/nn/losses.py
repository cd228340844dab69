"""Injection of a method's loss into SB3's algorithms, whose losses stay unchanged."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.errors import BadConfig

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
