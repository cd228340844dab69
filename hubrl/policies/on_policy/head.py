"""Head of a policy that draws one pathway: all layers behind the features, under autograd.

It is the reference. `hubrl.policies.on_policy.fused_head` makes one operation of it, with manual
gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hubrl.nn.manual_gradients import AutogradInputs, ManualMLP, ParameterPack
from hubrl.policies.on_policy.distributions import draw_gaussian, draw_pathway
from hubrl.policies.on_policy.step import StepContext, encode_solo
from hubrl.routing.weights import index_mask

SelectOutput = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch outputs"]]
"""Function from the acting pathway of each row to that source's own output; undefined where the
fresh pathway acts."""


class BackwardCache(NamedTuple):
    """Intermediate results of a step, for its gradients."""

    acted: Int[Tensor, " batch"]
    actor: list[Float[Tensor, "batch _"]]
    critic: list[Float[Tensor, "batch _"]]
    transition: Float[Tensor, "batch pathways"]
    """Log-probabilities of the next pathway."""
    stayed: Float[Tensor, "batch pathways"] | None
    """One at the previous pathway; none where no commitment is learned."""
    scaled: Float[Tensor, "batch _"]
    """Distances of actions from their means, in standard deviations; or log-probabilities of
    discrete actions."""
    precision: Float[Tensor, "batch actions"] | None
    """One over the standard deviations; none for Discrete."""
    actions: Tensor
    fresh: Bool[Tensor, "batch 1"]
    """Rows in which the fresh pathway acts."""
    solo: Bool[Tensor, "batch 1"]
    """Rows of solo episodes, in which the pathway acts with certainty and without correction."""


class FusedHeads(NamedTuple):
    """Heads as one layer, and log standard deviations as one matrix; none for absent ones."""

    weight: Tensor | None
    bias: Tensor | None
    stds: Float[Tensor, "pathways actions"] | None


class ActingParams(NamedTuple):
    """Action parameters of the acting pathway, corrected."""

    params: Float[Tensor, "batch _"]
    """Means; for Discrete log-probabilities, up to a constant."""
    log_std: Float[Tensor, "batch actions"] | None = None
    """Logarithms of the standard deviations; none for Discrete."""
    std: Float[Tensor, "batch actions"] | None = None

    def draw(self, at_mode: Bool[Tensor, " batch"] | None, *, deterministic: bool) -> Tensor:
        """Actions; the likeliest in some rows, or everywhere."""
        draw = draw_pathway if self.std is None else partial(draw_gaussian, std=self.std)
        return draw(self.params, at_mode=at_mode, deterministic=deterministic)


class Choice(NamedTuple):
    """Pathway and action of a step, row by row, and what they were drawn from."""

    acted: Int[Tensor, " batch"]
    selected_output: Float[Tensor, "batch outputs"]
    """Own output of the source that acts; undefined where the fresh pathway acts."""
    actions: Tensor
    params: ActingParams
    transition: Float[Tensor, "batch pathways"]
    """Log-probabilities of the next pathway."""
    stayed: Float[Tensor, "batch pathways"] | None
    """One at the previous pathway; none where no commitment is learned."""
    fresh: Bool[Tensor, "batch 1"]
    """Rows in which the fresh pathway acts."""
    solo: Bool[Tensor, "batch 1"]
    """Rows of solo episodes, in which the pathway acts with certainty and without correction."""


class PolicyStep(NamedTuple):
    """A step of the policy, row by row."""

    acted: Int[Tensor, " batch"]
    selected_output: Float[Tensor, "batch outputs"]
    """Own output of the source that acts; undefined where the fresh pathway acts."""
    actions: Tensor
    values: Float[Tensor, "batch 1"]
    log_prob: Float[Tensor, " batch"]
    cache: BackwardCache


@dataclass(frozen=True)
class CommittedHead:
    """Layers behind the features of a policy that draws one pathway; they belong to the policy."""

    space: spaces.Box | spaces.Discrete
    n_sources: int
    actor: ManualMLP
    critic: ManualMLP
    value: nn.Linear
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
    constant: bool = False
    """Whether no parameter changes while the head is in use, as in a rollout."""
    reads_features: bool = True
    """Whether `actor` and `critic` are the policy's hidden layers; else inputs are the outputs of
    those."""

    @cached_property
    def heads(self) -> list[nn.Linear]:
        """Layers that read the actor's last hidden layer."""
        return [
            layer for layer in (self.fresh, self.residual, self.stay_logit) if layer is not None
        ]

    @cached_property
    def stds(self) -> list[Tensor]:
        """Logarithms of all learned standard deviations, in the order of the pathways."""
        return [*self.log_stds, *([] if self.log_std is None else [self.log_std])]

    @property
    def parts(self) -> list[list[Tensor]]:
        """Parameters by group of gradients: the critic's; the pathway's and its action's."""
        heads = [
            *(layer.weight for layer in self.heads),
            *(layer.bias for layer in self.heads),
            *self.stds,
        ]
        critic = [*self.critic.parameters, self.value.weight, self.value.bias]
        return [critic, [*(self.actor.parameters if self.heads else []), *heads]]

    @cached_property
    def op_inputs(self) -> AutogradInputs:
        """Autograd inputs of all parameters of the head."""
        return AutogradInputs([parameter for part in self.parts for parameter in part])

    @cached_property
    def _views(self) -> FusedHeads:
        """Heads of constant parameters, or as views of packed ones, which change in place."""
        return self._stack_heads()

    @property
    def fused(self) -> FusedHeads:
        """Heads as one layer, and log standard deviations as one matrix; none for absent ones."""
        return self._views if self.constant or self.op_inputs.packs else self._stack_heads()

    def _stack_heads(self) -> FusedHeads:
        weights, biases = (
            [layer.weight for layer in self.heads],
            [layer.bias for layer in self.heads],
        )
        stds = stack_parameters(self.stds, new=True) if self.stds else None
        if not weights:
            return FusedHeads(None, None, stds)
        return FusedHeads(stack_parameters(weights), stack_parameters(biases), stds)

    @cached_property
    def sizes(self) -> list[int]:
        """Width of each head."""
        return [layer.out_features for layer in self.heads]

    def decide(
        self,
        features: tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]],
        log_weights: Float[Tensor, "batch pathways"],
        select_output: SelectOutput,
        context: StepContext,
        actions: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> PolicyStep:
        """Compute a step; the pathway and its action are drawn unless they are known.

        Args:
            features: Inputs of the actor and of the critic.
            log_weights: Logarithms of the pathway weights.
            select_output: Output of the source that acts, from the acting pathways.
            context: The step's inputs; `previous` must be known.
            actions: Known actions; none to draw them.
            deterministic: Whether to take the likeliest pathway and action.
        """
        actor, critic = self.actor.forward(features[0]), self.critic.forward(features[1])
        choice = self.choose(
            actor[-1], log_weights, select_output, context, actions, deterministic=deterministic
        )
        acted, transition, solo = choice.acted, choice.transition, choice.solo
        chosen = transition.gather(1, acted[:, None]).squeeze(1).masked_fill(solo[:, 0], 0.0)
        likelihood, scaled, precision = self._likelihood(choice.params, choice.actions)
        cache = BackwardCache(
            acted,
            actor,
            critic,
            transition,
            choice.stayed,
            scaled,
            precision,
            choice.actions,
            choice.fresh,
            solo,
        )
        return PolicyStep(
            acted,
            choice.selected_output,
            choice.actions,
            self.value(critic[-1]),
            chosen + likelihood,
            cache,
        )

    def choose(
        self,
        latent: Float[Tensor, "batch latent"],
        log_weights: Float[Tensor, "batch pathways"],
        select_output: SelectOutput,
        context: StepContext,
        actions: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> Choice:
        """Pathway and action of a step, drawn unless they are known.

        Args:
            latent: The actor's last hidden layer.
            log_weights: As of `decide`, like all that follow.
            select_output: Output of the source that acts.
            context: The step's inputs.
            actions: Known actions.
            deterministic: Whether to take the likeliest ones.
        """
        assert context.previous is not None
        solo, fused = cast("Tensor", context.solo), self.fused
        fresh_params, correction, stay_logit = self._head_outputs(latent, fused)
        transition, stayed = log_weights, None
        if stay_logit is not None:
            stayed = index_mask(context.previous, log_weights.shape[1]).float()
            transition = torch.addcmul(log_weights, stayed, stay_logit).log_softmax(dim=1)
        acted = context.acted
        if acted is None:
            drawn = draw_pathway(transition, context.deterministic, deterministic=deterministic)
            acted = torch.where(solo, encode_solo(context.previous), drawn)
        fresh, solo = (acted == self.n_sources)[:, None], solo[:, None]
        selected = select_output(acted)
        correction = None if correction is None else correction.masked_fill(solo, 0.0)
        learned = fused.stds[acted] if self.log_stds and fused.stds is not None else None
        params = self._acting_params(selected, fresh, fresh_params, correction, learned)
        if actions is None:
            actions = params.draw(context.deterministic, deterministic=deterministic)
        return Choice(acted, selected, actions, params, transition, stayed, fresh, solo)

    def _head_outputs(
        self, latent: Float[Tensor, "batch latent"], fused: FusedHeads
    ) -> tuple[Tensor | None, ...]:
        """Outputs of the fresh pathway, the correction and the commitment; none for absent ones."""
        outputs: Sequence[Tensor] = ()
        if fused.weight is not None:
            outputs = functional.linear(latent, fused.weight, fused.bias).split(self.sizes, dim=1)
        each = iter(outputs)
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
        """`distributions.log_likelihood` of actions, `BackwardCache.scaled` and `precision`."""
        if acting.log_std is None or acting.std is None:
            normal = acting.params.log_softmax(dim=1)
            return normal.gather(1, actions.long().reshape(-1, 1)).squeeze(1), normal, None
        precision = acting.std.reciprocal()
        scaled = (actions - acting.params) * precision
        squares = torch.addcmul(acting.log_std, scaled, scaled, value=0.5).sum(dim=1)
        return -0.5 * math.log(2 * math.pi) * scaled.shape[1] - squares, scaled, precision


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
