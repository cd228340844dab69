"""Action distributions over several pathways, one of which acts."""

import math
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.policies.on_policy.head import draw_gaussian, draw_pathway


class PathwayDistribution(Distribution):
    """Base of distributions that draw a pathway by weight, then an action from its own."""

    acted: Int[Tensor, " batch"]
    """Pathway that acted, after `sample` or `mode`."""

    def __init__(self, action_space: spaces.Box | spaces.Discrete) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.action_space = action_space

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not supported: the pathways have networks of their own."""
        raise BadConfig("A mixture of pathways has no network of its own.")

    def proba_distribution(
        self,
        action_params: Float[Tensor, "batch computed outputs"],
        log_weights: Float[Tensor, "batch pathways"],
    ) -> "PathwayDistribution":
        """Distribution of action parameters, of all pathways or the acting one, and log-weights."""
        self.action_params, self.log_weights = action_params, log_weights
        return self

    @property
    def distribution(self) -> Any:  # type: ignore[override]
        """Not supported: a mixture is no single torch distribution.

        Raises:
            BadConfig: Always; TRPO reads it, to compute a divergence.
        """
        raise BadConfig(
            "What hub.agent makes for PPO or A2C was given to TRPO; use hub.agent(TRPO)."
        )

    def entropy(self) -> Tensor | None:
        """None, for want of a closed form; SB3 then takes the mean negative log-probability."""
        return None

    def sample(self) -> Tensor:
        """Draw a pathway, then its action."""
        self.acted = draw_pathway(self.log_weights)
        return draw_action(self._of_acted(), self.action_space)

    def mode(self) -> Tensor:
        """Likeliest action of the pathway with the greatest weight; actions are not averaged."""
        self.acted = draw_pathway(self.log_weights, deterministic=True)
        return draw_action(self._of_acted(), self.action_space, deterministic=True)

    def actions_from_params(
        self, action_params: Tensor, log_weights: Tensor, deterministic: bool = False
    ) -> Tensor:
        """Actions for action parameters of pathways."""
        return self.proba_distribution(action_params, log_weights).get_actions(
            deterministic=deterministic
        )

    def log_prob_from_params(
        self, action_params: Tensor, log_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Actions for action parameters of pathways, and their log-probabilities."""
        actions = self.actions_from_params(action_params, log_weights)
        return actions, self.log_prob(actions)

    def each_log_prob(self, actions: Tensor) -> Float[Tensor, "batch pathways"]:
        """Log-likelihood of an action under each pathway by itself."""
        return log_likelihood(self.action_params, actions[:, None], self.action_space)

    def _of_acted(self) -> Float[Tensor, "batch outputs"]:
        if self.action_params.shape[1] == 1:
            # Parameters of the acting pathway alone.
            return self.action_params[:, 0]
        return self.action_params.gather(
            1, self.acted[:, None, None].expand(-1, 1, self.action_params.shape[2])
        ).squeeze(1)


class MixtureDistribution(PathwayDistribution):
    """Mixture of pathways: its likelihood sums over them, whichever acted."""

    def log_prob(self, actions: Tensor) -> Float[Tensor, " batch"]:
        """Logarithm of the mixture's density."""
        return torch.logsumexp(self.log_weights + self.each_log_prob(actions), dim=1)


class CommittedDistribution(PathwayDistribution):
    """Joint distribution of pathway and action, because the pathway binds the next steps.

    The weights are transition probabilities: of each pathway, given the previous one.
    """

    deterministic: Bool[Tensor, " batch"] | None = None
    acted: Int[Tensor, " batch"] | None = None  # type: ignore[assignment]

    def given(
        self,
        acted: Int[Tensor, " batch"] | None,
        deterministic: Bool[Tensor, " batch"] | None = None,
    ) -> "CommittedDistribution":
        """Distribution with known pathways or deterministic rows; it is changed in place.

        Args:
            acted: Pathways that acted in the rollout, in its update.
            deterministic: In a rollout, rows whose action is the mode.
        """
        if acted is not None:
            self.acted = acted
        self.deterministic = deterministic
        return self

    def sample(self) -> Tensor:
        """Draw a pathway, then its action; the modes in deterministic rows."""
        self.acted = draw_pathway(self.log_weights, self.deterministic)
        return draw_action(self._of_acted(), self.action_space, self.deterministic)

    def log_prob(self, actions: Tensor) -> Float[Tensor, " batch"]:
        """Log-likelihood of pathway and action; of the mixture where the pathway is unknown."""
        if self.acted is None:
            return torch.logsumexp(self.log_weights + self.each_log_prob(actions), dim=1)
        chosen: Tensor = self.log_weights.gather(1, self.acted[:, None]).squeeze(1)
        return chosen + log_likelihood(self._of_acted(), actions, self.action_space)


def log_likelihood(
    action_params: Float[Tensor, "*rows outputs"],
    actions: Tensor,
    space: spaces.Box | spaces.Discrete,
) -> Float[Tensor, " *rows"]:
    """Log-likelihood of actions under action parameters.

    Args:
        action_params: Means and log standard deviations, or log-probabilities up to a constant.
        actions: Of the shape of the means, or one that broadcasts to it; without the last
            dimension for Discrete.
        space: Box or Discrete.
    """
    if isinstance(space, spaces.Discrete):
        normal = functional.log_softmax(action_params, dim=-1)
        choice = (
            actions.long()
            .reshape(len(actions), *[1] * (action_params.ndim - 1))
            .expand(*normal.shape[:-1], 1)
        )
        return normal.gather(-1, choice).squeeze(-1)
    mean, log_std = action_params.chunk(2, dim=-1)
    scaled = (actions - mean) * (-log_std).exp()
    density: Tensor = (-0.5 * scaled.square() - log_std).sum(dim=-1) - 0.5 * math.log(
        2 * math.pi
    ) * mean.shape[-1]
    return density


def draw_action(
    action_params: Float[Tensor, "batch outputs"],
    space: spaces.Box | spaces.Discrete,
    at_mode: Bool[Tensor, " batch"] | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """Actions drawn from action parameters; the likeliest in some rows, or everywhere."""
    if isinstance(space, spaces.Discrete):
        return draw_pathway(action_params, at_mode, deterministic=deterministic)
    mean, log_std = action_params.chunk(2, dim=1)
    return draw_gaussian(mean, log_std.exp(), at_mode, deterministic=deterministic)


def mixed_categorical(
    action_params: Float[Tensor, "batch pathways outputs"],
    log_weights: Float[Tensor, "batch pathways"],
) -> CategoricalDistribution:
    """Mixture of discrete distributions as one discrete distribution, whose entropy is exact."""
    normal = functional.log_softmax(action_params, dim=2)
    logits = torch.logsumexp(log_weights[:, :, None] + normal, dim=1)
    return CategoricalDistribution(logits.shape[1]).proba_distribution(logits)
