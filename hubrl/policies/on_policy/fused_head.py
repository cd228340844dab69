"""Manual backward of `CommittedHead.decide`, its optional faster twin.

The cost of networks with a few dozen units is the number of operations, and autograd adds two for
each. So all layers behind the features are one operation to autograd, with short formulas as
derivatives.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hubrl.nn.manual_gradients import linear_gradients
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.on_policy.head import BackwardCache, CommittedHead
from hubrl.policies.on_policy.step import StepContext
from hubrl.routing.weights import cached_arange, index_mask


def evaluate_fused(
    head: CommittedHead,
    features: tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]],
    log_weights: Float[Tensor, "batch pathways"],
    selected_output: Float[Tensor, "batch outputs"],
    context: StepContext,
    actions: Tensor,
) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, " batch"]]:
    """Values and log-probabilities of a known step, with a gradient.

    Args:
        head: The head.
        features: Inputs of the actor and of the critic.
        log_weights: Logarithms of the pathway weights.
        selected_output: Output of the source that acted; undefined where the fresh pathway acted.
        context: The step's inputs, with acting and previous pathways.
        actions: The actions.
    """
    inputs = (*features, log_weights, selected_output, *head.op_inputs.tensors)
    return cast("tuple[Tensor, Tensor]", _FusedDecide.apply(head, context, actions, *inputs))  # type: ignore[no-untyped-call]


def gradients(
    head: CommittedHead,
    cache: BackwardCache,
    by_values: Tensor | None,
    by_log_prob: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of both features, log-weights, source output and all autograd inputs of the head.

    Args:
        head: The head that made the step.
        cache: Intermediate results of the step.
        by_values: Derivative of the loss by the values, `(batch, 1)`; none for zeros.
        by_log_prob: Derivative of the loss by the log-probabilities, `(batch,)`; none for zeros.
        wanted: Whether each of the first four is needed.
    """
    of_critics, critic, value = _of_critic(head, cache, by_values, features=wanted[1])
    if by_log_prob is None:
        nothing = [None] * (len(head.op_inputs.parameters) - len(critic) - len(value))
        return [
            None,
            of_critics,
            None,
            None,
            *head.op_inputs.gradients([*critic, *value, *nothing]),
        ]
    outer = by_log_prob[:, None]
    slope = outer * _slope(cache)
    of_means = slope if cache.precision is None else slope * cache.precision
    of_log_stds = None if cache.precision is None else torch.addcmul(-outer, slope, cache.scaled)
    of_weights = _of_transition(cache, outer)
    of_heads = []
    if head.fresh is not None:
        of_heads.append(of_means * cache.fresh)
    if head.residual is not None:
        of_heads.append(slope.masked_fill(cache.fresh | cache.solo, 0.0))
    if cache.stayed is not None:
        of_heads.append(of_weights * cache.stayed)
    of_actors, actor, heads = _of_actor(head, cache, of_heads, features=wanted[0])
    of_output = (
        _of_output(cache, of_means, None if head.log_stds else of_log_stds) if wanted[3] else None
    )
    stds = [] if of_log_stds is None else _of_stds(head, cache, of_log_stds)
    return [
        of_actors,
        of_critics,
        of_weights,
        of_output,
        *head.op_inputs.gradients([*critic, *value, *actor, *heads, *stds]),
    ]


def _of_actor(
    head: CommittedHead, cache: BackwardCache, of_heads: Sequence[Tensor], *, features: bool
) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
    """Gradients of the actor's features, its hidden layers and its heads."""
    if not of_heads:
        return None, [], []
    latent = cache.actor[-1]
    of_fused = torch.cat(list(of_heads), dim=1)
    weights, biases = linear_gradients(of_fused, latent)
    read, hidden = head.actor.backward(
        cache.actor, of_fused @ cast("Tensor", head.fused.weight), inputs=features
    )
    return read, hidden, [*weights.split(head.sizes), *biases.split(head.sizes)]


def _of_critic(
    head: CommittedHead, cache: BackwardCache, by_values: Tensor | None, *, features: bool
) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Gradients of the critic's features, its hidden layers and its last layer."""
    if by_values is None:
        return None, [None] * len(head.critic.parameters), [None, None]
    if isinstance(head.value, PopArtLinear) and head.value.rescaled:
        by_values = by_values / head.value.units[1]
    read, hidden = head.critic.backward(
        cache.critic, by_values @ head.value.weight, inputs=features
    )
    return read, hidden, linear_gradients(by_values, cache.critic[-1])


def _of_transition(
    cache: BackwardCache, outer: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch pathways"]:
    """Gradient of the log pathway weights, and of the stay logits added to them."""
    free = outer.masked_fill(cache.solo, 0.0)
    chosen = index_mask(cache.acted, cache.transition.shape[1]) * free
    return (
        chosen
        if cache.stayed is None
        else chosen.addcmul_(cache.transition.exp(), free, value=-1.0)
    )


def _of_stds(
    head: CommittedHead, cache: BackwardCache, of_log_stds: Float[Tensor, "batch actions"]
) -> list[Tensor]:
    """Gradients of the log standard deviations, each summed over the rows of its pathway."""
    if head.log_stds:
        acting = cached_arange(len(head.stds), cache.acted.device)[:, None] == cache.acted
        return list((acting.float() @ of_log_stds).unbind())
    return [] if head.log_std is None else [(of_log_stds * cache.fresh).sum(dim=0)]


def _slope(cache: BackwardCache) -> Float[Tensor, "batch _"]:
    """Derivative of the log-likelihood by means, in standard deviations, or by discrete logits."""
    if cache.precision is not None:
        return cache.scaled
    choice = cache.actions.long().reshape(-1, 1)
    return (-cache.scaled.exp()).scatter_add_(1, choice, torch.ones_like(cache.scaled))


def _of_output(
    cache: BackwardCache,
    of_means: Float[Tensor, "batch _"],
    of_log_stds: Float[Tensor, "batch actions"] | None,
) -> Float[Tensor, "batch outputs"]:
    """Gradient of the selected sources' outputs, for sources that are trained further."""
    own = (
        of_means
        if cache.precision is None
        else torch.cat(
            [of_means, torch.zeros_like(of_means) if of_log_stds is None else of_log_stds], dim=1
        )
    )
    return own.masked_fill(cache.fresh, 0.0)


class _FusedDecide(torch.autograd.Function):
    """`CommittedHead.decide` for known actions as one operation of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        head: CommittedHead,
        context: StepContext,
        actions: Tensor,
        actors: Tensor,
        critics: Tensor,
        log_weights: Tensor,
        selected_output: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # Not read again, but torch then notices parameters that changed before the backward pass.
        ctx.save_for_backward(log_weights, selected_output, *parameters)
        step = head.decide(
            (actors, critics), log_weights, lambda _: selected_output, context, actions
        )
        # Not the step itself: a reference from the context to its own results would be a cycle.
        ctx.head, ctx.cache = head, step.cache
        return step.values, step.log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_values: Tensor | None, by_log_prob: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        return (
            None,
            None,
            None,
            *gradients(ctx.head, ctx.cache, by_values, by_log_prob, ctx.needs_input_grad[3:7]),
        )
