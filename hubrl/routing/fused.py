"""What a router makes of a minibatch as one operation, with gradients by hand: pathway weights, or features aggregated by them.

Where what frozen sources say is stored, all that is left of a hub in a gradient step are a router and, at the level of features, a
projection a source: a few products of some dozen rows, for which autograd would keep three times as many operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.nn.losses import DIFFERENTIATED_TWICE, mean_entropy
from hubrl.nn.manual_mlp import ManualMLP, linear, linear_gradients
from hubrl.nn.parameter_packing import AutogradInputs
from hubrl.routing.router import NOISE_FLOOR, Router
from hubrl.routing.weights import Weighted, pathway_weights
from hubrl.sources.preprocessing import Observations


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
    layers = ManualMLP(hidden)
    parameters = [*layers.parameters, *(each for layer in (mean, *projections) for each in (layer.weight, layer.bias))]
    return Aggregated(*_Aggregate.apply(layers, mean, projections, explore_coef, heard, read, *parameters))  # type: ignore[no-untyped-call]


def weighed(
    router: Router,
    observations: Observations,
    noise: Float[Tensor, "batch pathways"],
    k: int,
    trusted: Bool[Tensor, " pathways"] | None,
    explore_coef: float,
) -> tuple[Weighted, Float[Tensor, ""]]:
    """Pathway weights under noise, whose gradient the exploration loss rides on, and that loss.

    Args:
        router: Which says the numbers.
        observations: As SB3 preprocesses them.
        noise: As wide as the router says.
        k: How many are active in a row, see `pathway_weights`.
        trusted: Who may be active at all; none for everybody.
        explore_coef: As of `aggregated`.
    """
    layers, op_inputs = router.manual_backward()
    log_weights, active, loss = _Weigh.apply(
        router, layers, op_inputs, k, trusted, explore_coef, router.read(observations), noise, *op_inputs.tensors
    )  # type: ignore[no-untyped-call]
    return Weighted(log_weights, active), loss


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        router: Router,
        layers: ManualMLP,
        op_inputs: AutogradInputs,
        k: int,
        trusted: Tensor | None,
        explore_coef: float,
        read: Tensor,
        noise: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # Not read again, but torch then notices weights that changed before the gradient was asked for.
        ctx.save_for_backward(*inputs)
        hidden = layers.forward(read)
        wide = linear(hidden[-1], router.spread)
        z = torch.addcmul(linear(hidden[-1], router.mean), noise, functional.softplus(wide).add_(NOISE_FLOOR))
        log_weights, active = pathway_weights(z, k, trusted)
        weights = log_weights.exp()
        entropy, slope = mean_entropy(weights)
        loss = explore_coef * entropy
        ctx.router, ctx.op_inputs, ctx.layers, ctx.hidden, ctx.noise, ctx.wide = router, op_inputs, layers, hidden, noise, wide
        ctx.weights, ctx.slope = weights, explore_coef * slope
        ctx.silent = ~active if trusted is not None or k < z.shape[1] else None
        ctx.mark_non_differentiable(active, loss)
        return log_weights, active, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_weights: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        if of_log_weights is None:
            # Only the critic learns, and nothing is to be explored.
            return (None,) * (8 + len(ctx.op_inputs.tensors))
        if ctx.silent is not None:
            of_log_weights = of_log_weights.masked_fill(ctx.silent, 0.0)
        outer = torch.addcmul(of_log_weights, ctx.weights, ctx.slope)
        of_z = torch.addcmul(outer, ctx.weights, outer.sum(dim=1, keepdim=True), value=-1.0)
        of_wide = (of_z * ctx.noise).mul_(ctx.wide.sigmoid())
        of_hidden = (of_z @ ctx.router.mean.weight).addmm_(of_wide, ctx.router.spread.weight)
        of_read, hidden = ctx.layers.backward(ctx.hidden, of_hidden, inputs=ctx.needs_input_grad[6])
        heads = linear_gradients(of_z, ctx.hidden[-1]) + linear_gradients(of_wide, ctx.hidden[-1])
        return (None, None, None, None, None, None, of_read, None, *ctx.op_inputs.gradients([*hidden, *heads]))


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: ManualMLP,
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
            raise BadConfig(DIFFERENTIATED_TWICE)
        assert ctx.saved_tensors
        weights = ctx.weights
        of_weights = torch.bmm(ctx.said, outer[:, :, None]).squeeze(2) + ctx.slope
        of_z = weights * (of_weights - (weights * of_weights).sum(dim=1, keepdim=True))
        of_read, of_hidden = ctx.layers.backward(ctx.hidden, of_z @ ctx.mean.weight, inputs=False)
        of_heads = linear_gradients(of_z, ctx.hidden[-1])
        for index, rows in enumerate(ctx.heard):
            of_heads += linear_gradients(outer * weights[:, index, None], rows)
        return (None, None, None, None, None, of_read, *of_hidden, *of_heads)
