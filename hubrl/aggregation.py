"""Features that were heard before, routed and aggregated as one operation, with gradients by hand.

Where frozen features are stored, all that is left of a hub in a gradient step are a router and a projection a source: a few products
of some dozen rows, for which autograd would keep three times as many operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.losses import TWICE, mean_entropy
from hubrl.perceptron import Perceptron, linear, linear_gradients


class Aggregated(NamedTuple):
    """What was made of a batch."""

    features: Float[Tensor, "batch width"]
    log_weights: Float[Tensor, "batch sources"]
    """Logarithms of the pathway weights, without a gradient."""
    loss: Float[Tensor, ""]
    """The exploration loss, whose gradient rides on the features already."""


def aggregated(
    heard: Sequence[Float[Tensor, "batch _"]],
    read: Float[Tensor, "batch inputs"],
    projections: Sequence[nn.Linear],
    hidden: nn.Sequential,
    mean: nn.Linear,
    explore_coef: float,
) -> Aggregated:
    """Project what every source said, weigh it by a softmax over the router's numbers, add it up.

    Args:
        heard: What each source said.
        read: What the router's hidden layers read.
        projections: Of each source.
        hidden: The router's hidden layers.
        mean: The router's last.
        explore_coef: Coefficient of the negative entropy of the mean weights, in nats, which is added to the loss.

    Raises:
        BadConfig: In the backward pass, if the algorithm differentiates its gradient.
    """
    layers = Perceptron(hidden)
    parameters = [*layers.parameters, *(each for layer in (mean, *projections) for each in (layer.weight, layer.bias))]
    return Aggregated(*_Aggregate.apply(layers, mean, projections, explore_coef, heard, read, *parameters))  # type: ignore[no-untyped-call]


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: Perceptron,
        mean: nn.Linear,
        projections: Sequence[nn.Linear],
        explore_coef: float,
        heard: Sequence[Tensor],
        read: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(*parameters)
        hidden = layers.forward(read)
        log_weights = linear(hidden[-1], mean).log_softmax(dim=1)
        weights = log_weights.exp()
        said = torch.stack([linear(rows, projection) for rows, projection in zip(heard, projections, strict=True)], dim=1)
        entropy, slope = mean_entropy(weights)
        ctx.layers, ctx.mean, ctx.heard, ctx.hidden, ctx.weights, ctx.said = layers, mean, heard, hidden, weights, said
        ctx.slope = explore_coef * slope
        loss = explore_coef * entropy
        ctx.mark_non_differentiable(log_weights, loss)
        return torch.bmm(weights[:, None], said).squeeze(1), log_weights, loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise BadConfig(TWICE)
        assert ctx.saved_tensors
        weights = ctx.weights
        of_weights = torch.bmm(ctx.said, outer[:, :, None]).squeeze(2) + ctx.slope
        of_z = weights * (of_weights - (weights * of_weights).sum(dim=1, keepdim=True))
        of_read, of_hidden = ctx.layers.backward(ctx.hidden, of_z @ ctx.mean.weight, inputs=False)
        of_heads = linear_gradients(of_z, ctx.hidden[-1])
        for index, rows in enumerate(ctx.heard):
            of_heads += linear_gradients(outer * weights[:, index, None], rows)
        return (None, None, None, None, None, of_read, *of_hidden, *of_heads)
