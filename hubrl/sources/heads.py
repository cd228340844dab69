"""A source's action and value heads, rebuilt from its card.

Parameter names are part of the file format: the keys of a source's `.safetensors` file.
"""

import math
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn

from hubrl.formats.cards import ActionHead, Declared, ValueHead
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations
from hubrl.sources.trunks import build_trunks, mlp

DETERMINISTIC_STD = 0.1
"""Standard deviation for heads that have none: of the actions, or before the tanh."""


class GaussianAction(nn.Module):
    """A Gaussian head, squashed or not, with any of SB3's three kinds of standard deviation."""

    def __init__(self, width: int, space: spaces.Box, head: ActionHead) -> None:
        super().__init__()
        n_actions = get_action_dim(space)
        self.space, self.head = space, head
        self.mean = nn.Linear(width, n_actions)
        if head.log_std == "linear":
            self.log_std: nn.Module | nn.Parameter = nn.Linear(width, n_actions)
        else:
            sde = (width, head.log_std_width or n_actions)
            self.log_std = nn.Parameter(torch.zeros(sde if head.log_std == "sde" else n_actions))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Mean and log standard deviation in the environment's units."""
        mean = self.mean(features)
        return self.to_outputs(mean, self._log_std(features).expand_as(mean))

    def std_parameters(self) -> list[Tensor]:
        """A linear layer's kernel and bias, or the one parameter of the standard deviation."""
        if isinstance(self.log_std, nn.Linear):
            return [self.log_std.weight, self.log_std.bias]
        return [cast("Tensor", self.log_std)]

    def to_outputs(
        self, mean: Float[Tensor, "*rows actions"], log_std: Float[Tensor, "*#rows actions"]
    ) -> Float[Tensor, "*rows outputs"]:
        """Action parameters from the outputs of the head's layers."""
        if self.head.mean_clip is not None:
            mean = mean.clamp(-self.head.mean_clip, self.head.mean_clip)
        if self.head.kind == "squashed-gaussian":
            return action_params.squashed_gaussian(mean, log_std, self.space)
        return action_params.gaussian(mean, log_std, self.space)

    def _log_std(self, features: Tensor) -> Tensor:
        if isinstance(self.log_std, nn.Module):
            linear: Tensor = self.log_std(features)
            return linear
        assert isinstance(self.log_std, Tensor)
        if self.head.log_std != "sde":
            return self.log_std
        return sde_log_std(features, self.log_std, expln=self.head.expln)


def sde_log_std(
    features: Float[Tensor, "*sources batch width"],
    matrix: Float[Tensor, "*sources width actions"],
    *,
    expln: bool,
) -> Float[Tensor, "*sources batch actions"]:
    """Log standard deviation of SB3's state-dependent exploration (gSDE)."""
    std = _expln(matrix) if expln else matrix.exp()
    return 0.5 * (features.square() @ std.square() + 1e-6).log()


class DeterministicAction(nn.Module):
    """TD3's and DDPG's head: a tanh that spans the bounds, with a small standard deviation."""

    def __init__(self, width: int, space: spaces.Box) -> None:
        super().__init__()
        self.space = space
        self.mean = nn.Linear(width, get_action_dim(space))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Mean and log standard deviation in the environment's units."""
        mean = self.mean(features)
        log_std = torch.full_like(mean, math.log(DETERMINISTIC_STD))
        return action_params.squashed_gaussian(mean, log_std, self.space)


class CategoricalAction(nn.Module):
    """Logits of Discrete or MultiDiscrete choices, or of MultiBinary bits."""

    def __init__(self, width: int, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.logits = nn.Linear(width, action_params.width(space))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Log-probabilities of the choices, or logits of the bits."""
        return action_params.categorical(self.logits(features), self.space)


class GreedyAction(nn.Module):
    """Q-values, or quantiles or distributions of returns, and their epsilon-greedy policy."""

    atoms: Tensor | None

    def __init__(self, width: int, space: spaces.Discrete, head: ActionHead) -> None:
        super().__init__()
        self.n_actions = int(space.n)
        each = head.quantiles or head.atoms or 1
        self.q = nn.Linear(width, self.n_actions * each)
        self.is_plain = each == 1
        """Whether the layer's outputs are the Q-values."""
        self.register_buffer("atoms", None if head.atoms is None else torch.zeros(head.atoms))

    def q_values(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch actions"]:
        """The agent's Q-values, in returns of its own task."""
        outputs: Tensor = self.q(features)
        if self.atoms is not None:
            # CleanRL's order: all returns of an action lie together.
            probabilities = outputs.view(len(outputs), self.n_actions, -1).softmax(dim=2)
            return probabilities @ self.atoms
        return outputs.view(len(outputs), -1, self.n_actions).mean(dim=1)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch actions"]:
        """Log-probabilities of the epsilon-greedy policy."""
        return action_params.greedy(self.q_values(features))


class StateValue(nn.Module):
    """V(s), from the encoder's trunks or from trunks of its own."""

    def __init__(self, space: spaces.Space[Any], network: Declared, trunk_width: int) -> None:
        super().__init__()
        head = _value_head(network)
        self.trunks = build_trunks(space, network) if head.trunk == "own" else None
        self.hidden = mlp(trunk_width, head.layers)
        self.value = nn.Linear([trunk_width, *head.layers.widths][-1], 1)

    def forward(
        self, observations: Observations, trunk: Tensor, action: Tensor
    ) -> Float[Tensor, " batch"]:
        """Value of each observation; `action` is not used."""
        features = trunk if self.trunks is None else self.trunks(observations)
        value: Tensor = self.value(self.hidden(features))
        return value.squeeze(1)


class ActionValue(nn.Module):
    """The least of several critics Q(s, a) at the agent's own action, as in SAC, TD3 and TQC."""

    def __init__(
        self,
        space: spaces.Space[Any],
        network: Declared,
        trunk_width: int,
        actions: spaces.Box,
    ) -> None:
        super().__init__()
        head = _value_head(network)
        self.actions = actions
        self.trunks = build_trunks(space, network) if head.trunk == "own" else None
        inputs = trunk_width + get_action_dim(actions)
        last = [inputs, *head.layers.widths][-1]
        self.critics = nn.ModuleList(
            mlp(inputs, head.layers).append(nn.Linear(last, head.quantiles))
            for _ in range(head.critics)
        )

    def forward(
        self, observations: Observations, trunk: Tensor, action: Tensor
    ) -> Float[Tensor, " batch"]:
        """Value of each observation at `action`, given in the environment's units."""
        features = trunk if self.trunks is None else self.trunks(observations)
        bounds = self.actions.low, self.actions.high
        low, high = (torch.as_tensor(each, device=features.device).flatten() for each in bounds)
        inputs = torch.cat([features, 2 * (action - low) / (high - low) - 1], dim=1)
        values = [critic(inputs).mean(dim=1) for critic in self.critics]
        return torch.stack(values).min(dim=0).values


class GreedyValue(nn.Module):
    """The greatest of an agent's Q-values."""

    def forward(
        self, observations: Observations, trunk: Tensor, action: Tensor
    ) -> Float[Tensor, " batch"]:
        """The greatest Q-value of each observation; `action` holds the Q-values."""
        return action.max(dim=1).values


class CustomHead(nn.Module):
    """A user's action head with outputs as every other's."""

    def __init__(self, head: nn.Module, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.head, self.space = head, space

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Action parameters from means, means and log standard deviations, or logits."""
        raw: Tensor = self.head(features)
        if not isinstance(self.space, spaces.Box):
            return action_params.categorical(raw, self.space)
        if 2 * raw.shape[1] == action_params.width(self.space):
            log_std = raw.new_full((1, raw.shape[1]), math.log(DETERMINISTIC_STD))
            return action_params.gaussian(raw, log_std, self.space)
        mean, log_std = raw.chunk(2, dim=1)
        return action_params.gaussian(mean, log_std, self.space)


class CustomValue(nn.Module):
    """A user's value head, called as every other."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, observations: Observations, trunk: Tensor, action: Tensor
    ) -> Float[Tensor, " batch"]:
        """Value of each observation, from the encoder's features alone."""
        value: Tensor = self.head(trunk)
        return value.reshape(-1)


def _value_head(network: Declared) -> ValueHead:
    assert network.value is not None
    return network.value


def _expln(log_std: Tensor) -> Tensor:
    """SB3's `expln`: exp below zero, log(1 + x) + 1 above, where exp would explode."""
    positive = torch.log1p(log_std.clamp_min(0) + 1e-6) + 1
    return torch.where(log_std <= 0, log_std.exp(), positive)
