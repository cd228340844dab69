"""Manual backward of `CommittedHead.decide`, its optional faster twin.

The cost of networks with a few dozen units is the number of operations, and autograd adds two for
each. So all layers behind the features are one operation to autograd, with short formulas as
derivatives.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hubrl.nn.manual_gradients import linear_gradients
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.on_policy.head import CommittedHead
from hubrl.policies.on_policy.step import Computed, HeadInputs, Routed, StepContext
from hubrl.routing.weights import mean_entropy


class Evaluation(NamedTuple):
    """A known step, with a gradient."""

    values: Float[Tensor, "batch 1"]
    log_prob: Float[Tensor, " batch"]
    loss: Float[Tensor, ""] | None
    """The exploration loss, for logs; its gradient is part of that of the log-probabilities. None
    where the head has no router or only the critic learns."""


def evaluate_fused(
    head: CommittedHead,
    rows: HeadInputs,
    selected_output: Float[Tensor, "batch outputs"],
    context: StepContext,
    actions: Tensor,
) -> Evaluation:
    """Values and log-probabilities of a known step.

    Args:
        head: The head.
        rows: Rows that the head reads.
        selected_output: Output of the source that acted; undefined where the fresh pathway acted.
        context: The step's inputs, with acting and previous pathways.
        actions: The actions.
    """
    inputs = (*rows, selected_output, *head.op_inputs.tensors)
    return Evaluation(*_FusedDecide.apply(head, context, actions, *inputs))  # type: ignore[no-untyped-call]


class _FusedDecide(torch.autograd.Function):
    """`CommittedHead.decide` for known actions as one operation of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        head: CommittedHead,
        context: StepContext,
        actions: Tensor,
        critics: Tensor,
        actors: Tensor,
        router: Tensor,
        selected_output: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        # Not read again, but torch then notices parameters that changed before the backward pass.
        ctx.save_for_backward(*parameters)
        rows = HeadInputs(critics, actors, router)
        step = head.decide(rows, lambda _: selected_output, context, actions)
        # Not the step itself: a reference from the context to its own results would be a cycle.
        ctx.head, ctx.computed, ctx.noise = head, step.computed, context.noise
        ctx.weights = ctx.slope = loss = None
        if head.routing is not None and not context.critic_only:
            ctx.weights = step.computed.routed.log_weights.exp()
            if head.routing.explore_coef > 0:
                entropy, slope = mean_entropy(ctx.weights)
                ctx.slope = head.routing.explore_coef * slope
                loss = head.routing.explore_coef * entropy
                ctx.mark_non_differentiable(loss)
        return step.values, step.log_prob, loss

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_values: Tensor | None, by_log_prob: Tensor | None, _: None
    ) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        return None, None, None, *_gradients(ctx, by_values, by_log_prob, ctx.needs_input_grad[3:7])


def _gradients(
    ctx: Any,
    by_values: Tensor | None,
    by_log_prob: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the head's rows, the source's output and all autograd inputs of the head.

    Args:
        ctx: Head, step and exploration loss of the forward pass.
        by_values: Derivative of the loss by the values, `(batch, 1)`; none for zeros.
        by_log_prob: Derivative of the loss by the log-probabilities, `(batch,)`; none for zeros.
        wanted: Whether each of the first four is needed.
    """
    head, computed = cast("CommittedHead", ctx.head), cast("Computed", ctx.computed)
    of_critics, critic = _of_critic(head, computed, by_values, features=wanted[0])
    if by_log_prob is None:
        nothing = [None] * len(head.parts[1])
        return [of_critics, None, None, None, *head.op_inputs.gradients([*critic, *nothing])]
    choice, precision = computed.choice, computed.precision
    outer = by_log_prob[:, None]
    slope = outer * _slope(computed)
    of_means = slope if precision is None else slope * precision
    of_log_stds = None if precision is None else torch.addcmul(-outer, slope, computed.scaled)
    acting = head.pathways == choice.acted[:, None]
    of_weights = _of_transition(computed, acting, outer)
    of_actors, actor, heads = None, list[Tensor](), list[Tensor]()
    of_router: Tensor | None = of_weights
    if head.fused.actor is not None:
        of_fused = _of_heads(head, computed, of_means, slope, of_weights)
        heads = linear_gradients(of_fused, computed.hidden[1][-1])
        of_actors, actor = head.hidden[1].backward(
            computed.hidden[1], of_fused @ head.fused.actor[0], inputs=wanted[1]
        )
    router, router_heads = list[Tensor](), list[Tensor]()
    if head.fused.router is not None:
        of_fused = _of_router_heads(ctx, computed.routed, of_weights)
        router_heads = linear_gradients(of_fused, computed.hidden[2][-1])
        of_router, router = head.hidden[2].backward(
            computed.hidden[2], of_fused @ head.fused.router[0], inputs=wanted[2]
        )
    stds = [] if of_log_stds is None else _of_stds(head, computed, acting, of_log_stds)
    of_output = None
    if wanted[3]:
        of_output = _of_output(computed, of_means, None if head.log_stds else of_log_stds)
    every = [*critic, *actor, *router, *heads, *stds, *router_heads]
    return [of_critics, of_actors, of_router, of_output, *head.op_inputs.gradients(every)]


def _of_critic(
    head: CommittedHead, computed: Computed, by_values: Tensor | None, *, features: bool
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Gradients of the critic's features, and of its hidden layers and last layer."""
    if by_values is None:
        return None, [None] * len(head.parts[0])
    value, hidden = head.value_layer, computed.hidden[0]
    if isinstance(value, PopArtLinear) and value.rescaled:
        by_values = by_values / value.units[1]
    rows, layers = head.hidden[0].backward(hidden, by_values @ value.weight, inputs=features)
    return rows, [*layers, *linear_gradients(by_values, hidden[-1])]


def _of_heads(
    head: CommittedHead,
    computed: Computed,
    of_means: Float[Tensor, "batch _"],
    slope: Float[Tensor, "batch _"],
    of_weights: Float[Tensor, "batch pathways"],
) -> Float[Tensor, "batch _"]:
    """Gradients of the outputs of the layers that read the actor's last hidden layer."""
    choice, each = computed.choice, list[Tensor]()
    if head.fresh is not None:
        each.append(of_means * choice.fresh)
    if head.residual is not None:
        apart = choice.fresh if choice.solo is None else choice.fresh | choice.solo
        each.append(slope.masked_fill(apart, 0.0))
    if choice.stayed is not None:
        each.append(of_weights * choice.stayed)
    return torch.cat(each, dim=1)


def _of_router_heads(
    ctx: Any, routed: Routed, of_weights: Float[Tensor, "batch pathways"]
) -> Float[Tensor, "batch _"]:
    """Gradients of the outputs of the router's last layers; the exploration loss is added here."""
    if routed.inactive is not None:
        of_weights = of_weights.masked_fill(routed.inactive, 0.0)
    if ctx.slope is not None:
        of_weights = torch.addcmul(of_weights, ctx.weights, ctx.slope)
    total = of_weights.sum(dim=1, keepdim=True)
    of_logits = torch.addcmul(of_weights, ctx.weights, total, value=-1.0)
    if routed.spread is None:
        return of_logits
    of_scale = torch.zeros_like(of_logits) if ctx.noise is None else of_logits * ctx.noise
    return torch.cat([of_logits, of_scale * routed.spread.sigmoid()], dim=1)


def _of_transition(
    computed: Computed, acting: Tensor, outer: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch pathways"]:
    """Gradient of the log pathway weights, and of the stay logits added to them."""
    choice = computed.choice
    free = outer if choice.solo is None else outer.masked_fill(choice.solo, 0.0)
    chosen = acting * free
    if choice.stayed is None:
        return chosen
    return chosen.addcmul_(choice.transition.exp(), free, value=-1.0)


def _of_stds(
    head: CommittedHead, computed: Computed, acting: Tensor, of_log_stds: Tensor
) -> list[Tensor]:
    """Gradient of the log standard deviations, each summed over the rows of its pathway."""
    if head.log_stds:
        return [acting[:, : len(head.stds)].float().t() @ of_log_stds]
    if head.log_std is None:
        return []
    return [(of_log_stds * computed.choice.fresh).sum(dim=0)]


def _slope(computed: Computed) -> Float[Tensor, "batch _"]:
    """Derivative of the log-likelihood by means, in standard deviations, or by discrete logits."""
    if computed.precision is not None:
        return computed.scaled
    choice = computed.choice.actions.long().reshape(-1, 1)
    return (-computed.scaled.exp()).scatter_add_(1, choice, torch.ones_like(computed.scaled))


def _of_output(
    computed: Computed, of_means: Float[Tensor, "batch _"], of_log_stds: Tensor | None
) -> Float[Tensor, "batch outputs"]:
    """Gradient of the selected sources' outputs, for sources that are trained further."""
    own = of_means
    if computed.precision is not None:
        rest = torch.zeros_like(of_means) if of_log_stds is None else of_log_stds
        own = torch.cat([of_means, rest], dim=1)
    return own.masked_fill(computed.choice.fresh, 0.0)
