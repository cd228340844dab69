"""Routing of a minibatch's features as one autograd operation, with a manual backward pass.

Where features of frozen sources are stored, a router and a projection a source are all that is left
of a hub in a gradient step: products of some dozen rows, for which autograd would keep three times
as many operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.nn.losses import DIFFERENTIATED_TWICE
from hubrl.nn.manual_gradients import ManualMLP, linear, linear_gradients
from hubrl.routing.weights import mean_entropy


class FusedAggregate(NamedTuple):
    """Aggregated features of a batch."""

    features: Float[Tensor, "batch width"]
    log_weights: Float[Tensor, "batch sources"]
    """Logarithms of the pathway weights, without a gradient."""
    loss: Float[Tensor, ""]
    """The exploration loss, for logs; its gradient is part of that of `features`."""


def fused_aggregate(
    features: Sequence[Float[Tensor, "batch _"]],
    router_inputs: Float[Tensor, "batch inputs"],
    projections: Sequence[nn.Linear],
    hidden: nn.Sequential,
    mean: nn.Linear,
    explore_coef: float,
) -> FusedAggregate:
    """Sum of the projected features, weighted by a softmax over the router's logits.

    Args:
        features: Features of each source.
        router_inputs: Inputs of the router's hidden layers.
        projections: Projection of each source.
        hidden: The router's hidden layers.
        mean: The router's last layer.
        explore_coef: Coefficient of the negative entropy of the mean weights, in nats.

    Raises:
        BadConfig: In the backward pass, if the algorithm differentiates its gradient.
    """
    layers = ManualMLP(hidden)
    heads = [each for layer in (mean, *projections) for each in (layer.weight, layer.bias)]
    parameters = [*layers.parameters, *heads]
    inputs = (layers, mean, projections, explore_coef, features, router_inputs, *parameters)
    return FusedAggregate(*_Aggregate.apply(*inputs))  # type: ignore[no-untyped-call]


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: ManualMLP,
        mean: nn.Linear,
        projections: Sequence[nn.Linear],
        explore_coef: float,
        features: Sequence[Tensor],
        read: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(*parameters)
        hidden = layers.forward(read)
        log_weights = linear(hidden[-1], mean).log_softmax(dim=1)
        weights = log_weights.exp()
        pairs = zip(features, projections, strict=True)
        outputs = torch.stack([linear(own, projection) for own, projection in pairs], dim=1)
        entropy, slope = mean_entropy(weights)
        ctx.layers, ctx.mean, ctx.features, ctx.hidden = layers, mean, features, hidden
        ctx.weights, ctx.outputs = weights, outputs
        ctx.slope = explore_coef * slope
        loss = explore_coef * entropy
        ctx.mark_non_differentiable(log_weights, loss)
        return torch.bmm(weights[:, None], outputs).squeeze(1), log_weights, loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise BadConfig(DIFFERENTIATED_TWICE)
        assert ctx.saved_tensors
        weights = ctx.weights
        by_weights = torch.bmm(ctx.outputs, outer[:, :, None]).squeeze(2) + ctx.slope
        by_z = weights * (by_weights - (weights * by_weights).sum(dim=1, keepdim=True))
        by_hidden = by_z @ ctx.mean.weight
        by_read, hidden = ctx.layers.backward(ctx.hidden, by_hidden, inputs=False)
        heads = linear_gradients(by_z, ctx.hidden[-1])
        for index, own in enumerate(ctx.features):
            heads += linear_gradients(outer * weights[:, index, None], own)
        return (*[None] * 5, by_read, *hidden, *heads)
