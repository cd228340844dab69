"""Routing of a minibatch as one autograd operation, with a manual backward pass.

Where outputs of frozen sources are stored, a router and, at the level of features, a projection a
source are all that is left of a hub in a gradient step: products of some dozen rows, for which
autograd would keep three times as many operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.nn.losses import DIFFERENTIATED_TWICE
from hubrl.nn.manual_gradients import AutogradInputs, ManualMLP, linear, linear_gradients
from hubrl.routing.router import NOISE_FLOOR, Router
from hubrl.routing.weights import PathwayWeights, mean_entropy, pathway_weights
from hubrl.sources.preprocessing import Observations


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


def fused_weights(
    router: Router,
    observations: Observations,
    noise: Float[Tensor, "batch pathways"],
    k: int,
    trusted: Bool[Tensor, " pathways"] | None,
    explore_coef: float,
) -> tuple[PathwayWeights, Float[Tensor, ""]]:
    """Pathway weights under noise and the exploration loss, whose gradient is part of theirs.

    Args:
        router: The router.
        observations: As SB3 preprocesses them.
        noise: Standard Gaussian noise.
        k: Active pathways a row, see `pathway_weights`.
        trusted: Pathways that may be active; None for all.
        explore_coef: As of `fused_aggregate`.
    """
    layers, op_inputs = router.manual_backward()
    log_weights, active, loss = _Weigh.apply(
        router,
        layers,
        op_inputs,
        k,
        trusted,
        explore_coef,
        router.read(observations),
        noise,
        *op_inputs.tensors,
    )  # type: ignore[no-untyped-call]
    return PathwayWeights(log_weights, active), loss


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
        # Saved only so that torch notices parameters that changed before the backward pass.
        ctx.save_for_backward(*inputs)
        hidden = layers.forward(read)
        spread = linear(hidden[-1], router.spread)
        scale = functional.softplus(spread).add_(NOISE_FLOOR)
        z = torch.addcmul(linear(hidden[-1], router.mean), noise, scale)
        log_weights, active = pathway_weights(z, k, trusted)
        weights = log_weights.exp()
        entropy, slope = mean_entropy(weights)
        loss = explore_coef * entropy
        ctx.router, ctx.op_inputs, ctx.layers, ctx.hidden = router, op_inputs, layers, hidden
        ctx.noise, ctx.spread, ctx.weights = noise, spread, weights
        ctx.slope = explore_coef * slope
        ctx.inactive = ~active if trusted is not None or k < z.shape[1] else None
        ctx.mark_non_differentiable(active, loss)
        return log_weights, active, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_weights: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        if by_log_weights is None:
            # Only the critic learns, and there is no exploration loss.
            return (None,) * (8 + len(ctx.op_inputs.tensors))
        if ctx.inactive is not None:
            by_log_weights = by_log_weights.masked_fill(ctx.inactive, 0.0)
        outer = torch.addcmul(by_log_weights, ctx.weights, ctx.slope)
        by_z = torch.addcmul(outer, ctx.weights, outer.sum(dim=1, keepdim=True), value=-1.0)
        by_spread = (by_z * ctx.noise).mul_(ctx.spread.sigmoid())
        by_hidden = by_z @ ctx.router.mean.weight
        by_hidden = by_hidden.addmm_(by_spread, ctx.router.spread.weight)
        by_read, hidden = ctx.layers.backward(ctx.hidden, by_hidden, inputs=ctx.needs_input_grad[6])
        latent = ctx.hidden[-1]
        heads = linear_gradients(by_z, latent) + linear_gradients(by_spread, latent)
        return (*[None] * 6, by_read, None, *ctx.op_inputs.gradients([*hidden, *heads]))


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
