"""Action distributions of several pathways: which of them acts, and how likely an action is."""

import math
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.routing.weights import index_mask


class PathwayDistribution(Distribution):
    """One pathway is drawn by its weight and acts with its own distribution."""

    drawn: Int[Tensor, " batch"]
    """Who acted, after `sample` or `mode`."""

    def __init__(self, action_space: spaces.Box | spaces.Discrete) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.action_space = action_space

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """There is none: the pathways speak for themselves."""
        raise BadConfig("A mixture of pathways has no network of its own.")

    def proba_distribution(
        self, speech: Float[Tensor, "batch speakers outputs"], log_weights: Float[Tensor, "batch pathways"]
    ) -> "PathwayDistribution":
        """What the pathways say, or the one of every row that can have acted, and the logarithms of their weights."""
        self.speech, self.log_weights = speech, log_weights
        return self

    @property
    def distribution(self) -> Any:  # type: ignore[override]
        """There is none.

        Raises:
            BadConfig: TRPO asks for it, to compute a divergence.
        """
        raise BadConfig("What hub.agent makes for PPO or A2C was given to TRPO; use hub.agent(TRPO).")

    def entropy(self) -> Tensor | None:
        """None: there is no closed form, and SB3 then estimates it by the mean negative log-probability."""
        return None

    def sample(self) -> Tensor:
        """Draw a pathway, then its action."""
        self.drawn = draw_pathway(self.log_weights)
        return draw_action(self._of_drawn(), self.action_space)

    def mode(self) -> Tensor:
        """The likeliest action of the pathway with the greatest weight: good gaits are chosen between, never averaged."""
        self.drawn = draw_pathway(self.log_weights, deterministic=True)
        return draw_action(self._of_drawn(), self.action_space, deterministic=True)

    def actions_from_params(self, speech: Tensor, log_weights: Tensor, deterministic: bool = False) -> Tensor:
        """Actions for what pathways say."""
        return self.proba_distribution(speech, log_weights).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, speech: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for what pathways say, and their log-probabilities."""
        actions = self.actions_from_params(speech, log_weights)
        return actions, self.log_prob(actions)

    def each_log_prob(self, actions: Tensor) -> Float[Tensor, "batch pathways"]:
        """How likely every pathway alone would do it, as a logarithm."""
        return log_likelihood(self.speech, actions[:, None], self.action_space)

    def _of_drawn(self) -> Float[Tensor, "batch outputs"]:
        if self.speech.shape[1] == 1:
            # Only one is left.
            return self.speech[:, 0]
        return self.speech.gather(1, self.drawn[:, None, None].expand(-1, 1, self.speech.shape[2])).squeeze(1)


class MixtureDistribution(PathwayDistribution):
    """A mixture: the likelihood is summed over pathways, so that ratios are exact without storing who acted."""

    def log_prob(self, actions: Tensor) -> Float[Tensor, " batch"]:
        """Logarithm of the mixture's density."""
        return torch.logsumexp(self.log_weights + self.each_log_prob(actions), dim=1)


class CommittedDistribution(PathwayDistribution):
    """Who acts is part of the decision, because it binds the next ones: the likelihood is of pathway and action.

    The weights are those of a transition: how likely each pathway acts, given the one that acted before.
    """

    calm: Bool[Tensor, " batch"] | None = None
    drawn: Int[Tensor, " batch"] | None = None  # type: ignore[assignment]

    def of(self, drawn: Int[Tensor, " batch"] | None, calm: Bool[Tensor, " batch"] | None = None) -> "CommittedDistribution":
        """What is known of the decisions.

        Args:
            drawn: Those of a rollout, in its update.
            calm: In a rollout, where the mode is to be drawn.
        """
        if drawn is not None:
            self.drawn = drawn
        self.calm = calm
        return self

    def sample(self) -> Tensor:
        """Draw a pathway, then its action; where it is to be calm, its mode."""
        self.drawn = draw_pathway(self.log_weights, self.calm)
        return draw_action(self._of_drawn(), self.action_space, self.calm)

    def log_prob(self, actions: Tensor) -> Float[Tensor, " batch"]:
        """Logarithm of the likelihood that this pathway is chosen and does this; of the mixture where no pathway is known to have acted."""
        if self.drawn is None:
            return torch.logsumexp(self.log_weights + self.each_log_prob(actions), dim=1)
        chosen: Tensor = self.log_weights.gather(1, self.drawn[:, None]).squeeze(1)
        return chosen + log_likelihood(self._of_drawn(), actions, self.action_space)


def log_likelihood(speech: Float[Tensor, "*rows outputs"], actions: Tensor, space: spaces.Box | spaces.Discrete) -> Float[Tensor, " *rows"]:
    """How likely those who say this do that, as a logarithm.

    Args:
        speech: Means and log standard deviations, or log-probabilities up to a constant.
        actions: Of the shape of the means, or of one with ones in it; without the last dimension where they are choices.
        space: Box or Discrete.
    """
    if isinstance(space, spaces.Discrete):
        normal = functional.log_softmax(speech, dim=-1)
        choice = actions.long().reshape(len(actions), *[1] * (speech.ndim - 1)).expand(*normal.shape[:-1], 1)
        return normal.gather(-1, choice).squeeze(-1)
    mean, log_std = speech.chunk(2, dim=-1)
    scaled = (actions - mean) * (-log_std).exp()
    density: Tensor = (-0.5 * scaled.square() - log_std).sum(dim=-1) - 0.5 * math.log(2 * math.pi) * mean.shape[-1]
    return density


def draw_pathway(
    log_weights: Float[Tensor, "batch pathways"], calm: Bool[Tensor, " batch"] | None = None, *, deterministic: bool = False
) -> Int[Tensor, " batch"]:
    """Who acts, drawn by weight; the likeliest where it is to be calm, or everywhere."""
    if deterministic:
        return log_weights.argmax(dim=1)
    drawn = _draw(log_weights)
    return drawn if calm is None else torch.where(calm, log_weights.argmax(dim=1), drawn)


def draw_action(
    said: Float[Tensor, "batch outputs"],
    space: spaces.Box | spaces.Discrete,
    calm: Bool[Tensor, " batch"] | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """What those do who say this; the likeliest where it is to be calm, or everywhere."""
    if isinstance(space, spaces.Discrete):
        return draw_pathway(said, calm, deterministic=deterministic)
    mean, log_std = said.chunk(2, dim=1)
    return draw_gaussian(mean, log_std.exp(), calm, deterministic=deterministic)


def draw_gaussian(
    mean: Float[Tensor, "batch actions"],
    std: Float[Tensor, "batch actions"],
    calm: Bool[Tensor, " batch"] | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """Continuous actions; the mean where it is to be calm, or everywhere."""
    if deterministic:
        return mean
    drawn: Tensor = torch.normal(mean, std)
    return drawn if calm is None else torch.where(calm[:, None], mean, drawn)


def _draw(logits: Float[Tensor, "batch choices"]) -> Int[Tensor, " batch"]:
    # As `torch.multinomial` does it, which checks all it is given first: a race of exponential clocks is won in proportion to rates.
    weights = functional.softmax(logits, dim=1)
    return (weights / torch.empty_like(weights).exponential_(1.0)).argmax(dim=1)


def mixed_categorical(
    speech: Float[Tensor, "batch pathways outputs"], log_weights: Float[Tensor, "batch pathways"]
) -> CategoricalDistribution:
    """A mixture of discrete choices, which is a discrete choice itself, so that its entropy is exact."""
    normal = functional.log_softmax(speech, dim=2)
    logits = torch.logsumexp(log_weights[:, :, None] + normal, dim=1)
    return CategoricalDistribution(logits.shape[1]).proba_distribution(logits)


def held(
    log_weights: Float[Tensor, "batch pathways"], previous: Int[Tensor, " batch"], stickiness: Float[Tensor, "batch pathways"] | None = None
) -> Float[Tensor, "batch pathways"]:
    """How likely each pathway acts next, given who acted before, as a logarithm [ours].

    Each pathway's own stickiness `c_i` is added where it acted: `p = softmax(log w + c [i = previous])`; without one, who acted
    acts again for sure. Where nobody acted before `p = w`. A pathway that was held but is not active any more lets go.

    Args:
        log_weights: Logarithms of pathway weights; minus infinity where a pathway is not active.
        previous: Who acted before; below 0 for nobody.
        stickiness: Of each pathway, in nats; none for infinitely much.
    """
    there = index_mask(previous, log_weights.shape[1])
    if stickiness is not None:
        return functional.log_softmax(log_weights + there * stickiness, dim=1)
    there = there & log_weights.isfinite()
    sure = torch.zeros_like(log_weights).masked_fill(~there, -torch.inf)
    return torch.where(there.any(dim=1, keepdim=True), sure, log_weights)
