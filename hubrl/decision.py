"""Who acts and what it does, with gradients by hand.

Networks of a few dozen units cost what calling an operation costs, and autograd calls twice as many as there are. Where only
who acts need be asked, all that lies behind the features is one operation to it, whose derivatives are short formulas.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hubrl.distributions import draw_gaussian, draw_pathway
from hubrl.nn.manual_mlp import ManualMLP, linear_gradients
from hubrl.nn.parameter_packing import AutogradInputs, ParameterPack
from hubrl.nn.popart import PopArtLinear
from hubrl.outputs import Hearing, solo
from hubrl.routing.weights import cached_arange, index_mask

Answer = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch outputs"]]
"""Asked who acts, row by row, says what that source says itself; anything where the fresh pathway acts."""


class Trace(NamedTuple):
    """What the gradients of some decisions are made of."""

    acted: Int[Tensor, " batch"]
    actor: list[Float[Tensor, "batch _"]]
    critic: list[Float[Tensor, "batch _"]]
    transition: Float[Tensor, "batch pathways"]
    """How likely each pathway acts next, as logarithms."""
    there: Float[Tensor, "batch pathways"] | None
    """One at the pathway that acted before; none where nobody is held."""
    spoken: Float[Tensor, "batch _"]
    """How far actions are from their means, in standard deviations; or the logarithms of what choices were likely."""
    precision: Float[Tensor, "batch actions"] | None
    """One over the standard deviations; none where actions are choices."""
    actions: Tensor
    fresh: Bool[Tensor, "batch 1"]
    """Where the fresh pathway acts."""
    alone: Bool[Tensor, "batch 1"]
    """Where a pathway plays its episode alone, which is sure to act and, if it is a source, is not corrected."""


class Joint(NamedTuple):
    """Layers that read the same as one, and vectors that are alike as one, one below the other; none where there are none."""

    weight: Tensor | None
    bias: Tensor | None
    stds: Float[Tensor, "pathways actions"] | None


class Speech(NamedTuple):
    """What acts says."""

    said: Float[Tensor, "batch _"]
    """Means, or log-probabilities of the choices, up to a constant."""
    log_std: Float[Tensor, "batch actions"] | None = None
    """Logarithms of the standard deviations; none where actions are choices."""
    std: Float[Tensor, "batch actions"] | None = None

    def draw(self, calm: Bool[Tensor, " batch"] | None, *, deterministic: bool) -> Tensor:
        """What is done; the likeliest where it is to be calm, or everywhere."""
        draw = draw_pathway if self.std is None else partial(draw_gaussian, std=self.std)
        return draw(self.said, calm=calm, deterministic=deterministic)


class Decision(NamedTuple):
    """Who acts and what it does, row by row."""

    acted: Int[Tensor, " batch"]
    said: Float[Tensor, "batch outputs"]
    """What the source that acts says itself; anything where the fresh pathway acts."""
    actions: Tensor
    values: Float[Tensor, "batch 1"]
    log_prob: Float[Tensor, " batch"]
    trace: Trace | None
    """None where no gradient can be asked for."""


@dataclass(frozen=True)
class Decider:
    """What a policy that draws one pathway has behind its features."""

    space: spaces.Box | spaces.Discrete
    n_sources: int
    actor: ManualMLP
    critic: ManualMLP
    value: nn.Linear
    fresh: nn.Linear | None
    """The actor's last layer, which speaks for the fresh pathway; none if there is no such pathway."""
    residual: nn.Linear | None
    """Corrects the sources, if anything does."""
    stickiness: nn.Linear | None
    """Holds who acted before, if anything does."""
    log_stds: Sequence[Tensor]
    """Logarithms of the standard deviations of the sources' pathways; empty where they are the sources' own."""
    log_std: Tensor | None
    """That of the fresh pathway, where it has one."""

    @property
    def heads(self) -> list[nn.Linear]:
        """What reads the actor's hidden layers."""
        return [layer for layer in (self.fresh, self.residual, self.stickiness) if layer is not None]

    @property
    def stds(self) -> list[Tensor]:
        """Logarithms of all standard deviations that are learned here, in the order of the pathways."""
        return [*self.log_stds, *([] if self.log_std is None else [self.log_std])]

    @property
    def parts(self) -> list[list[Tensor]]:
        """Parameters whose gradients come together: the critic's, and those of who acts and what it does."""
        heads = [*(layer.weight for layer in self.heads), *(layer.bias for layer in self.heads), *self.stds]
        critic = [*self.critic.parameters, self.value.weight, self.value.bias]
        return [critic, [*(self.actor.parameters if self.heads else []), *heads]]

    @cached_property
    def op_inputs(self) -> AutogradInputs:
        """All that is learned here, as autograd is told of it."""
        return AutogradInputs([parameter for part in self.parts for parameter in part])

    @cached_property
    def _views(self) -> "Joint":
        """The same as `_joint`, which the optimizer writes to, where parameters are packed."""
        return self._made_joint()

    @property
    def _joint(self) -> "Joint":
        """All that reads the actor's hidden layers as one layer, and all standard deviations."""
        return self._views if self.op_inputs.packs else self._made_joint()

    def _made_joint(self) -> "Joint":
        weights, biases = [layer.weight for layer in self.heads], [layer.bias for layer in self.heads]
        stds = joint(self.stds, new=True) if self.stds else None
        return Joint(joint(weights), joint(biases), stds) if weights else Joint(None, None, stds)

    @cached_property
    def _sizes(self) -> list[int]:
        """How wide each head is."""
        return [layer.out_features for layer in self.heads]

    def __call__(
        self,
        features: tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]],
        log_weights: Float[Tensor, "batch pathways"],
        said: Float[Tensor, "batch outputs"],
        hearing: Hearing,
        actions: Tensor,
    ) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, " batch"]]:
        """Values and log-probabilities of decisions that are known, with a gradient.

        Args:
            features: What the actor and the critic read.
            log_weights: Logarithms of the pathway weights.
            said: What the source that acted says itself; anything where the fresh pathway acted.
            hearing: Who acted, and before.
            actions: What was done.
        """
        return cast("tuple[Tensor, Tensor]", _Decide.apply(self, hearing, actions, *features, log_weights, said, *self.op_inputs.tensors))  # type: ignore[no-untyped-call]

    def decide(
        self,
        features: tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]],
        log_weights: Float[Tensor, "batch pathways"],
        answer: Answer,
        hearing: Hearing,
        actions: Tensor | None = None,
        *,
        deterministic: bool = False,
    ) -> Decision:
        """Decisions; who acts, and what it does, is drawn where it is not known, the likeliest if that is asked for."""
        assert hearing.previous is not None
        alone = cast("Tensor", hearing.alone)
        actor, critic = self.actor.forward(features[0]), self.critic.forward(features[1])
        own = self._joint
        heads = iter(() if own.weight is None else functional.linear(actor[-1], own.weight, own.bias).split(self._sizes, dim=1))
        layers = (self.fresh, self.residual, self.stickiness)
        fresh_says, correction, stickiness = (None if layer is None else next(heads) for layer in layers)
        transition, there = log_weights, None
        if stickiness is not None:
            there = index_mask(hearing.previous, log_weights.shape[1]).float()
            transition = torch.addcmul(log_weights, there, stickiness).log_softmax(dim=1)
        acted = hearing.acted
        if acted is None:
            drawn = draw_pathway(transition, hearing.calm, deterministic=deterministic)
            acted = torch.where(alone, solo(hearing.previous), drawn)
        chosen = transition.gather(1, acted[:, None]).squeeze(1).masked_fill(alone, 0.0)
        fresh = (acted == self.n_sources)[:, None]
        alone = alone[:, None]
        said = answer(acted)
        correction = None if correction is None else correction.masked_fill(alone, 0.0)
        speech = self._speech(said, fresh, fresh_says, correction, own.stds[acted] if self.log_stds and own.stds is not None else None)
        if actions is None:
            actions = speech.draw(hearing.calm, deterministic=deterministic)
        likelihood, spoken, precision = self._likelihood(speech, actions)
        trace = Trace(acted, actor, critic, transition, there, spoken, precision, actions, fresh, alone)
        return Decision(acted, said, actions, self.value(critic[-1]), chosen + likelihood, trace)

    def _speech(
        self,
        said: Float[Tensor, "batch outputs"],
        fresh: Bool[Tensor, "batch 1"],
        own: Float[Tensor, "batch _"] | None,
        correction: Float[Tensor, "batch _"] | None,
        learned: Float[Tensor, "batch actions"] | None,
    ) -> "Speech":
        """What acts says: a source, corrected, or the fresh pathway, which has its own to say; perhaps with deviations that are learned."""
        if isinstance(self.space, spaces.Discrete):
            corrected = said if correction is None else said + correction
            return Speech(corrected if own is None else torch.where(fresh, own, corrected))
        mean, log_std = said.chunk(2, dim=1)
        if learned is not None:
            log_std = learned
        elif self.log_std is not None:
            log_std = torch.where(fresh, self.log_std, log_std)
        std = log_std.exp()
        # In units of the standard deviation, so that a sharp source is moved gently.
        corrected = mean if correction is None else torch.addcmul(mean, correction, std.detach())
        return Speech(corrected if own is None else torch.where(fresh, own, corrected), log_std, std)

    def _likelihood(
        self, speech: "Speech", actions: Tensor
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch _"], Float[Tensor, "batch actions"] | None]:
        """Logarithms of how likely the actions are (`hubrl.distributions.log_likelihood`), and what its derivative is made of."""
        if speech.log_std is None or speech.std is None:
            normal = speech.said.log_softmax(dim=1)
            return normal.gather(1, actions.long().reshape(-1, 1)).squeeze(1), normal, None
        precision = speech.std.reciprocal()
        scaled = (actions - speech.said) * precision
        squares = torch.addcmul(speech.log_std, scaled, scaled, value=0.5).sum(dim=1)
        return -0.5 * math.log(2 * math.pi) * scaled.shape[1] - squares, scaled, precision

    def gradients(self, made: Trace, by_values: Tensor | None, by_log_prob: Tensor | None, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the two features, the weights' logarithms and what was said, then of all parameters, as they are handed to autograd.

        Args:
            made: What they are made of.
            by_values: Derivative of the loss by the values, `(batch, 1)`; none for zeros.
            by_log_prob: Derivative of the loss by the log-probabilities, `(batch,)`; none for zeros.
            wanted: Which of the first four are wanted.
        """
        of_critics, critic, value = self._of_critic(made, by_values, features=wanted[1])
        if by_log_prob is None:
            nothing = [None] * (len(self.op_inputs.parameters) - len(critic) - len(value))
            return [None, of_critics, None, None, *self.op_inputs.gradients([*critic, *value, *nothing])]
        outer = by_log_prob[:, None]
        slope = outer * _slope(made)
        of_means = slope if made.precision is None else slope * made.precision
        of_log_stds = None if made.precision is None else torch.addcmul(-outer, slope, made.spoken)
        of_weights = self._of_transition(made, outer)
        of_heads = []
        if self.fresh is not None:
            of_heads.append(of_means * made.fresh)
        if self.residual is not None:
            of_heads.append(slope.masked_fill(made.fresh | made.alone, 0.0))
        if made.there is not None:
            of_heads.append(of_weights * made.there)
        of_actors, actor, heads = self._of_actor(made, of_heads, features=wanted[0])
        of_said = _of_said(made, of_means, None if self.log_stds else of_log_stds) if wanted[3] else None
        stds = [] if of_log_stds is None else self._of_stds(made, of_log_stds)
        return [of_actors, of_critics, of_weights, of_said, *self.op_inputs.gradients([*critic, *value, *actor, *heads, *stds])]

    def _of_actor(
        self, made: Trace, of_heads: Sequence[Tensor], *, features: bool
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        """Gradients of what the actor reads, its hidden layers and its heads."""
        if not of_heads:
            return None, [], []
        latent = made.actor[-1]
        of_joint = torch.cat(list(of_heads), dim=1)
        weights, biases = linear_gradients(of_joint, latent)
        read, hidden = self.actor.backward(made.actor, of_joint @ cast("Tensor", self._joint.weight), inputs=features)
        return read, hidden, [*weights.split(self._sizes), *biases.split(self._sizes)]

    def _of_critic(
        self, made: Trace, by_values: Tensor | None, *, features: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Gradients of what the critic reads, its hidden layers and its last."""
        if by_values is None:
            return None, [None] * len(self.critic.parameters), [None, None]
        if isinstance(self.value, PopArtLinear) and self.value.rescaled:
            by_values = by_values / self.value.units[1]
        read, hidden = self.critic.backward(made.critic, by_values @ self.value.weight, inputs=features)
        return read, hidden, linear_gradients(by_values, made.critic[-1])

    def _of_transition(self, made: Trace, outer: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch pathways"]:
        """Gradient of the weights' logarithms, and of what is added to them where a pathway acted before."""
        free = outer.masked_fill(made.alone, 0.0)
        chosen = index_mask(made.acted, made.transition.shape[1]) * free
        return chosen if made.there is None else chosen.addcmul_(made.transition.exp(), free, value=-1.0)

    def _of_stds(self, made: Trace, of_log_stds: Float[Tensor, "batch actions"]) -> list[Tensor]:
        """Gradients of the standard deviations' logarithms, summed up over where each pathway acted."""
        if self.log_stds:
            who = cached_arange(len(self.stds), made.acted.device)[:, None] == made.acted
            return list((who.float() @ of_log_stds).unbind())
        return [] if self.log_std is None else [(of_log_stds * made.fresh).sum(dim=0)]


def joint(parameters: Sequence[Tensor], *, new: bool = False) -> Tensor:
    """Parameters one below the other: a view where they lie so in a pack.

    Args:
        parameters: Alike but for their length.
        new: Whether each becomes a row.
    """
    pack: ParameterPack | None = getattr(parameters[0], "pack", None)
    block = None if pack is None else pack.block(parameters)
    if block is None:
        return torch.stack(list(parameters)) if new else torch.cat(list(parameters))
    return block.view(len(parameters), -1) if new else block


def _slope(made: Trace) -> Float[Tensor, "batch _"]:
    """Derivative of the likelihood by means, in units of standard deviations, or by the logarithms of the choices."""
    if made.precision is not None:
        return made.spoken
    choice = made.actions.long().reshape(-1, 1)
    return (-made.spoken.exp()).scatter_add_(1, choice, torch.ones_like(made.spoken))


def _of_said(
    made: Trace, of_means: Float[Tensor, "batch _"], of_log_stds: Float[Tensor, "batch actions"] | None
) -> Float[Tensor, "batch outputs"]:
    """Gradient of what sources said, which is of consequence where they are trained further."""
    own = (
        of_means
        if made.precision is None
        else torch.cat([of_means, torch.zeros_like(of_means) if of_log_stds is None else of_log_stds], dim=1)
    )
    return own.masked_fill(made.fresh, 0.0)


class _Decide(torch.autograd.Function):
    """`Decider.decide` as one operation."""

    @staticmethod
    def forward(
        ctx: Any,
        decider: Decider,
        hearing: Hearing,
        actions: Tensor,
        actors: Tensor,
        critics: Tensor,
        log_weights: Tensor,
        said: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # Not read again, but torch then notices weights that changed before the gradient was asked for.
        ctx.save_for_backward(log_weights, said, *parameters)
        decision = decider.decide((actors, critics), log_weights, lambda _: said, hearing, actions)
        # Not the decision itself: what is returned here must not be held by what makes its gradient.
        ctx.decider, ctx.trace = decider, decision.trace
        return decision.values, decision.log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by: Tensor | None) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        return (None, None, None, *ctx.decider.gradients(ctx.trace, *by, ctx.needs_input_grad[3:7]))
