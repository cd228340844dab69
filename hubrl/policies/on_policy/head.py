"""Head of a policy that draws one pathway: all layers behind the features, under autograd.

It is the reference. `hubrl.policies.on_policy.fused_head` makes one operation of it, with manual
gradients.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hubrl.nn.manual_gradients import ManualMLP
from hubrl.nn.optimizers import AutogradInputs, ParameterPack
from hubrl.policies.on_policy.step import (
    SOLO_CODE,
    ActingParams,
    Choice,
    Computed,
    HeadInputs,
    PolicyStep,
    Routed,
    StepContext,
)
from hubrl.routing.router import NOISE_FLOOR, Routing
from hubrl.routing.weights import pathway_weights

SelectOutput = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch outputs"]]
"""Function from the acting pathway of each row to that source's own output; undefined where the
fresh pathway acts."""


class FusedHeads(NamedTuple):
    """Layers that read the same rows as one, and log standard deviations as one matrix."""

    actor: tuple[Tensor, Tensor] | None
    """Weight and bias of the layers that read the actor's last hidden layer; none without any."""
    router: tuple[Tensor, Tensor] | None
    """The same of the router; none without a router."""
    stds: Float[Tensor, "pathways actions"] | None


@dataclass(frozen=True)
class CommittedHead:
    """Layers behind the features of a policy that draws one pathway; they belong to the policy."""

    space: spaces.Box | spaces.Discrete
    n_sources: int
    n_pathways: int
    hidden: Sequence[ManualMLP]
    """Hidden layers of critic, actor and, with `routing`, router."""
    value: Callable[[Tensor], Tensor]
    """The critic's last layer, as it is called."""
    value_layer: nn.Linear
    fresh: nn.Linear | None
    """Actor's last layer, of the fresh pathway; none without that pathway."""
    residual: nn.Linear | None
    """Learned correction of the sources, if any."""
    stay_logit: nn.Linear | None
    """Learned commitment to the previous pathway, if any."""
    log_stds: Sequence[Tensor]
    """Logarithms of the standard deviations of the sources' pathways; empty where they are the
    sources' own."""
    log_std: Tensor | None
    """Logarithm of the fresh pathway's standard deviation, if it has one."""
    routing: Routing | None
    """Router and rule of the pathway weights; none where the method computes them itself."""
    judges: bool
    """Whether arms are judged, so that there are solo episodes."""
    reads_features: bool
    """Whether the hidden layers of critic and actor are the policy's; else inputs are the outputs
    of those."""
    fixed: bool
    """Whether no parameter changes as long as the head is used, as in a rollout."""

    @cached_property
    def heads(self) -> list[nn.Linear]:
        """Layers that read the actor's last hidden layer."""
        layers = (self.fresh, self.residual, self.stay_logit)
        return [layer for layer in layers if layer is not None]

    @cached_property
    def router_heads(self) -> list[nn.Linear]:
        """Last layers of the router: of its logits, and of the scale of their noise."""
        if self.routing is None:
            return []
        router = self.routing.router
        return [router.mean, router.spread] if self.routing.noisy else [router.mean]

    @cached_property
    def stds(self) -> list[Tensor]:
        """Logarithms of all learned standard deviations, in the order of the pathways."""
        return [*self.log_stds, *([] if self.log_std is None else [self.log_std])]

    @cached_property
    def parts(self) -> list[list[Sequence[Tensor]]]:
        """Parameters by group of gradients (the critic's; pathway and action), in blocks.

        The gradients of a block are computed as one.
        """
        networks: list[list[Sequence[Tensor]]] = [
            [[parameter] for parameter in network.parameters] for network in self.hidden
        ]
        critic, actor, *router = networks
        last: list[Sequence[Tensor]] = [[self.value_layer.weight], [self.value_layer.bias]]
        heads = [_weights_and_biases(layers) for layers in (self.heads, self.router_heads)]
        stds = [self.stds] if self.stds else []
        hidden = [*(actor if self.heads else []), *itertools.chain(*router)]
        return [[*critic, *last], [*hidden, *heads[0], *stds, *heads[1]]]

    @cached_property
    def op_inputs(self) -> AutogradInputs:
        """Autograd inputs of all parameters of the head."""
        return AutogradInputs([block for part in self.parts for block in part])

    @property
    def fused(self) -> FusedHeads:
        """Layers that read the same rows as one: views of packed parameters, or copies."""
        known = self.op_inputs.packs_blocks or (self.fixed and not torch.is_grad_enabled())
        return self._known_heads if known else self._stack_heads()

    @cached_property
    def _known_heads(self) -> FusedHeads:
        return self._stack_heads()

    def _stack_heads(self) -> FusedHeads:
        actor, router = (
            tuple(stack_parameters(block) for block in _weights_and_biases(layers)) or None
            for layers in (self.heads, self.router_heads)
        )
        stds = stack_parameters(self.stds, new=True) if self.stds else None
        return FusedHeads(actor, router, stds)  # type: ignore[arg-type]

    @cached_property
    def sizes(self) -> list[int]:
        """Width of each head."""
        return [layer.out_features for layer in self.heads]

    @cached_property
    def pathways(self) -> Int[Tensor, " pathways"]:
        """Indices of all pathways; not to be written to."""
        return torch.arange(self.n_pathways, device=self.value_layer.weight.device)

    def decide(
        self,
        inputs: HeadInputs,
        select_output: SelectOutput,
        context: StepContext,
        actions: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> PolicyStep:
        """Compute a step; the pathway and its action are drawn unless they are known.

        Args:
            inputs: Rows that the head reads.
            select_output: Output of the source that acts, from the acting pathways; used where the
                context knows none.
            context: The step's inputs; `previous` must be known.
            actions: Known actions; none to draw them.
            deterministic: Whether to take the likeliest pathway and action.
        """
        fused = self.fused
        hidden = [network.forward(rows) for network, rows in zip(self.hidden, inputs, strict=False)]
        critic, actor = hidden[0][-1], hidden[1][-1]
        rows = inputs.router if self.routing is None else hidden[2][-1]
        routed = self.route(rows, context, fused)
        choice = self.choose(
            actor, routed, select_output, context, fused, actions, deterministic=deterministic
        )
        chosen = choice.transition.gather(1, choice.acted[:, None])
        if choice.solo is not None:
            chosen = chosen.masked_fill(choice.solo, 0.0)
        likelihood, scaled, precision = self._likelihood(choice.params, choice.actions)
        computed = Computed(choice, routed, hidden, scaled, precision)
        return PolicyStep(choice, self.value(critic), chosen[:, 0] + likelihood, computed)

    def route(
        self, rows: Float[Tensor, "batch _"], context: StepContext, fused: FusedHeads
    ) -> Routed:
        """Pathway weights, as `compute_weights` of the method has them.

        Args:
            rows: The router's last hidden layer; without `routing` log pathway weights.
            context: The step's inputs, with the router's noise, if there is any.
            fused: The heads.
        """
        if self.routing is None or fused.router is None:
            return Routed(rows)
        z, spread, n = functional.linear(rows, *fused.router), None, self.n_pathways
        if self.routing.noisy:
            z, spread = z[:, :n], z[:, n:]
        if context.noise is not None and spread is not None:
            z = torch.addcmul(z, context.noise, functional.softplus(spread) + NOISE_FLOOR)
        if self.routing.trusted is None and self.routing.top_k >= n:
            return Routed(z.log_softmax(dim=1), spread)
        log_weights, active = pathway_weights(z, self.routing.top_k, self.routing.trusted)
        return Routed(log_weights, spread, ~active)

    def choose(
        self,
        latent: Float[Tensor, "batch latent"],
        routed: Routed,
        select_output: SelectOutput,
        context: StepContext,
        fused: FusedHeads,
        actions: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> Choice:
        """Pathway and action of a step, drawn unless they are known.

        Args:
            latent: The actor's last hidden layer.
            routed: The pathway weights.
            select_output: As of `decide`, like all that follow.
            context: The step's inputs.
            fused: The heads.
            actions: Known actions.
            deterministic: Whether to take the likeliest ones.
        """
        previous = context.previous
        assert previous is not None
        fresh_params, correction, stay_logit = self._head_outputs(latent, fused)
        transition, stayed = routed.log_weights, None
        if stay_logit is not None:
            stayed = (self.pathways == previous[:, None]).float()
            transition = torch.addcmul(transition, stayed, stay_logit).log_softmax(dim=1)
        solo = previous <= SOLO_CODE if self.judges else None
        acted = context.acted
        if acted is None:
            acted = draw_pathway(transition, context.deterministic, deterministic=deterministic)
            if solo is not None:
                acted = torch.where(solo, SOLO_CODE - previous, acted)
        fresh = (acted == self.n_sources)[:, None]
        if solo is not None:
            solo = solo[:, None]
            correction = None if correction is None else correction.masked_fill(solo, 0.0)
        learned, selected = None, self.selected_output(acted, select_output, context)
        if self.log_stds and fused.stds is not None:
            learned = fused.stds.index_select(0, acted)
        params = self._acting_params(selected, fresh, fresh_params, correction, learned)
        if actions is None:
            at_mode = context.deterministic
            actions = draw_action(params, at_mode, deterministic=deterministic)
        return Choice(acted, selected, actions, params, transition, stayed, fresh, solo)

    def selected_output(
        self, acted: Int[Tensor, " batch"], select_output: SelectOutput, context: StepContext
    ) -> Float[Tensor, "batch outputs"]:
        """Own output of the source that acts: a known one, or computed."""
        every = context.source_outputs
        if context.selected_output is not None:
            return context.selected_output
        if every is None:
            return select_output(acted)
        row = acted.clamp(max=self.n_sources - 1)[:, None, None]
        return every.gather(1, row.expand(-1, 1, every.shape[2]))[:, 0]

    def _head_outputs(
        self, latent: Float[Tensor, "batch latent"], fused: FusedHeads
    ) -> tuple[Tensor | None, ...]:
        """Outputs of the fresh pathway, the correction and the commitment; none for absent ones."""
        if fused.actor is None:
            return None, None, None
        each = iter(functional.linear(latent, *fused.actor).split_with_sizes(self.sizes, dim=1))
        return tuple(
            None if layer is None else next(each)
            for layer in (self.fresh, self.residual, self.stay_logit)
        )

    def _acting_params(
        self,
        params: Float[Tensor, "batch outputs"],
        fresh: Bool[Tensor, "batch 1"],
        own: Float[Tensor, "batch _"] | None,
        correction: Float[Tensor, "batch _"] | None,
        learned: Float[Tensor, "batch actions"] | None,
    ) -> ActingParams:
        """Action parameters of the acting pathway: a corrected source, or the fresh one."""
        if isinstance(self.space, spaces.Discrete):
            corrected = params if correction is None else params + correction
            return ActingParams(corrected if own is None else torch.where(fresh, own, corrected))
        mean, log_std = params.chunk(2, dim=1)
        if learned is not None:
            log_std = learned
        elif self.log_std is not None:
            log_std = torch.where(fresh, self.log_std, log_std)
        std = log_std.exp()
        # In units of the standard deviation, so that a sharp source is moved gently.
        corrected = mean if correction is None else torch.addcmul(mean, correction, std.detach())
        return ActingParams(
            corrected if own is None else torch.where(fresh, own, corrected), log_std, std
        )

    def _likelihood(
        self, acting: ActingParams, actions: Tensor
    ) -> tuple[
        Float[Tensor, " batch"], Float[Tensor, "batch _"], Float[Tensor, "batch actions"] | None
    ]:
        """`distributions.log_likelihood` of actions, `Computed.scaled` and `Computed.precision`."""
        if acting.log_std is None or acting.std is None:
            normal = acting.params.log_softmax(dim=1)
            return normal.gather(1, actions.long().reshape(-1, 1)).squeeze(1), normal, None
        precision = acting.std.reciprocal()
        scaled = (actions - acting.params) * precision
        squares = torch.addcmul(acting.log_std, scaled, scaled, value=0.5).sum(dim=1)
        return squares.neg() - 0.5 * math.log(2 * math.pi) * scaled.shape[1], scaled, precision


def _weights_and_biases(layers: Sequence[nn.Linear]) -> list[Sequence[Tensor]]:
    """The weights of some layers, and their biases; empty without layers."""
    if not layers:
        return []
    return [[layer.weight for layer in layers], [layer.bias for layer in layers]]


def stack_parameters(parameters: Sequence[Tensor], *, new: bool = False) -> Tensor:
    """Parameters stacked along the first axis: a view where a pack stores them so.

    Args:
        parameters: Of the same shape but for their length.
        new: Whether each becomes a row of a new axis.
    """
    pack: ParameterPack | None = getattr(parameters[0], "pack", None)
    block = None if pack is None else pack.block(parameters)
    if block is None:
        return torch.stack(list(parameters)) if new else torch.cat(list(parameters))
    return block.view(len(parameters), -1) if new else block


def draw_pathway(
    log_weights: Float[Tensor, "batch pathways"],
    at_mode: Bool[Tensor, " batch"] | None = None,
    *,
    deterministic: bool = False,
) -> Int[Tensor, " batch"]:
    """Pathways drawn by weight; the likeliest in some rows, or everywhere."""
    if deterministic:
        return log_weights.argmax(dim=1)
    # A race of exponential clocks is won in proportion to rates: `torch.multinomial` without its
    # checks.
    weights = log_weights.softmax(dim=1)
    drawn = (weights / torch.empty_like(weights).exponential_(1.0)).argmax(dim=1)
    return drawn if at_mode is None else torch.where(at_mode, log_weights.argmax(dim=1), drawn)


def draw_action(
    acting: ActingParams, at_mode: Bool[Tensor, " batch"] | None, *, deterministic: bool
) -> Tensor:
    """Actions of the acting pathways; the likeliest in some rows, or everywhere."""
    if acting.std is None:
        return draw_pathway(acting.params, at_mode, deterministic=deterministic)
    return draw_gaussian(acting.params, acting.std, at_mode, deterministic=deterministic)


def draw_gaussian(
    mean: Float[Tensor, "batch actions"],
    std: Float[Tensor, "batch actions"],
    at_mode: Bool[Tensor, " batch"] | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """Continuous actions; the mean in some rows, or everywhere."""
    if deterministic:
        return mean
    drawn: Tensor = torch.normal(mean, std)
    return drawn if at_mode is None else torch.where(at_mode[:, None], mean, drawn)
