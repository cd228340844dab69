"""A source's action and value heads, rebuilt from its card.

Parameter names are part of the file format: they are the keys of a source's `.safetensors` file.
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
from hubrl.sources.trunks import mlp, trunks_of


class GaussianAction(nn.Module):
    """A Gaussian head, squashed or not, with SB3's three ways to have a standard deviation."""

    def __init__(self, width: int, space: spaces.Box, head: ActionHead) -> None:
        super().__init__()
        n_actions = get_action_dim(space)
        self.space, self.head = space, head
        self.mean = nn.Linear(width, n_actions)
        if head.log_std == "linear":
            self.log_std: nn.Module | nn.Parameter = nn.Linear(width, n_actions)
        else:
            rows = (width, head.log_std_width or n_actions) if head.log_std == "sde" else (n_actions,)
            self.log_std = nn.Parameter(torch.zeros(rows))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Mean and log standard deviation in the environment's units."""
        mean = self.mean(features)
        return self.spoken(mean, self._log_std(features).expand_as(mean))

    def own_std(self) -> list[Tensor]:
        """What its standard deviation is made of: a linear layer's kernel and bias, or one parameter."""
        return [self.log_std.weight, self.log_std.bias] if isinstance(self.log_std, nn.Linear) else [cast("Tensor", self.log_std)]

    def spoken(self, mean: Float[Tensor, "*rows actions"], log_std: Float[Tensor, "*#rows actions"]) -> Float[Tensor, "*rows outputs"]:
        """Speech of what its layers say."""
        if self.head.mean_clip is not None:
            mean = mean.clamp(-self.head.mean_clip, self.head.mean_clip)
        squashed = self.head.kind == "squashed-gaussian"
        return (action_params.squashed_gaussian if squashed else action_params.gaussian)(mean, log_std, self.space)

    def _log_std(self, features: Tensor) -> Tensor:
        if isinstance(self.log_std, nn.Module):
            linear: Tensor = self.log_std(features)
            return linear
        assert isinstance(self.log_std, Tensor)
        return self.log_std if self.head.log_std != "sde" else log_std_of(features, self.log_std, expln=self.head.expln)


def log_std_of(
    features: Float[Tensor, "*sources batch width"], matrix: Float[Tensor, "*sources width actions"], *, expln: bool
) -> Float[Tensor, "*sources batch actions"]:
    """SB3's state-dependent standard deviation, as a logarithm."""
    std = _expln(matrix) if expln else matrix.exp()
    return 0.5 * (features.square() @ std.square() + 1e-6).log()


class DeterministicAction(nn.Module):
    """TD3's and DDPG's head: a tanh that spans the bounds, with a small standard deviation for company."""

    def __init__(self, width: int, space: spaces.Box) -> None:
        super().__init__()
        self.space = space
        self.mean = nn.Linear(width, get_action_dim(space))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Mean and log standard deviation in the environment's units."""
        mean = self.mean(features)
        return action_params.squashed_gaussian(mean, torch.full_like(mean, math.log(0.1)), self.space)


class CategoricalAction(nn.Module):
    """Logits over the choices of Discrete or MultiDiscrete actions, or over the bits of MultiBinary ones."""

    def __init__(self, width: int, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.logits = nn.Linear(width, action_params.width(space))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Log-probabilities of the choices, or logits of the bits."""
        logits: Tensor = self.logits(features)
        return logits if isinstance(self.space, spaces.MultiBinary) else action_params.categorical(logits, self.space)


class GreedyAction(nn.Module):
    """Q-values, or quantiles of them, and the epsilon-greedy policy they mean."""

    def __init__(self, width: int, space: spaces.Discrete, quantiles: int | None) -> None:
        super().__init__()
        self.n_actions = int(space.n)
        self.q = nn.Linear(width, self.n_actions * (quantiles or 1))

    def q_values(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch actions"]:
        """The agent's own Q-values, on its own task's scale."""
        quantiles: Tensor = self.q(features).view(len(features), -1, self.n_actions)
        return quantiles.mean(dim=1)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch actions"]:
        """Log-probabilities of the epsilon-greedy policy."""
        return action_params.greedy(self.q_values(features))


class StateValue(nn.Module):
    """V(s), from the encoder's trunks or from trunks of its own."""

    def __init__(self, space: spaces.Space[Any], network: Declared, trunk_width: int) -> None:
        super().__init__()
        head = _value_head(network)
        self.trunks = trunks_of(space, network) if head.trunk == "own" else None
        self.hidden = mlp(trunk_width, head.layers)
        self.value = nn.Linear([trunk_width, *head.layers.widths][-1], 1)

    def forward(self, observations: Observations, trunk: Tensor, action: Tensor) -> Float[Tensor, " batch"]:
        """What each observation is worth."""
        read = trunk if self.trunks is None else self.trunks(observations)
        value: Tensor = self.value(self.hidden(read))
        return value.squeeze(1)


class ActionValue(nn.Module):
    """The least of an ensemble of critics Q(s, a) with the agent's own action, as SAC, TD3 and TQC have them."""

    def __init__(self, space: spaces.Space[Any], network: Declared, trunk_width: int, actions: spaces.Box) -> None:
        super().__init__()
        head = _value_head(network)
        self.actions = actions
        self.trunks = trunks_of(space, network) if head.trunk == "own" else None
        inputs = trunk_width + get_action_dim(actions)
        last = [inputs, *head.layers.widths][-1]
        self.critics = nn.ModuleList(mlp(inputs, head.layers).append(nn.Linear(last, head.quantiles)) for _ in range(head.critics))

    def forward(self, observations: Observations, trunk: Tensor, action: Tensor) -> Float[Tensor, " batch"]:
        """What each observation is worth with the agent's own action, `action` in the environment's units."""
        read = trunk if self.trunks is None else self.trunks(observations)
        low, high = (torch.as_tensor(bound, device=read.device) for bound in (self.actions.low, self.actions.high))
        inputs = torch.cat([read, 2 * (action - low.flatten()) / (high - low).flatten() - 1], dim=1)
        return torch.stack([critic(inputs).mean(dim=1) for critic in self.critics]).min(dim=0).values


class GreedyValue(nn.Module):
    """The best of an agent's Q-values."""

    def forward(self, observations: Observations, trunk: Tensor, action: Tensor) -> Float[Tensor, " batch"]:
        """The greatest Q-value of each observation; `action` holds the Q-values."""
        return action.max(dim=1).values


class OwnHead(nn.Module):
    """A user's head, made to speak as every other."""

    def __init__(self, head: nn.Module, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.head, self.space = head, space

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Speech from the head's means, means and log standard deviations, or logits."""
        said: Tensor = self.head(features)
        if isinstance(self.space, spaces.MultiBinary):
            return said
        if not isinstance(self.space, spaces.Box):
            return action_params.categorical(said, self.space)
        if 2 * said.shape[1] == action_params.width(self.space):
            return action_params.gaussian(said, said.new_full((1, said.shape[1]), math.log(0.1)), self.space)
        return action_params.gaussian(said.chunk(2, dim=1)[0], said.chunk(2, dim=1)[1], self.space)


class OwnValue(nn.Module):
    """A user's value head, called as every other."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, observations: Observations, trunk: Tensor, action: Tensor) -> Float[Tensor, " batch"]:
        """What each observation is worth, read from the encoder's features."""
        worth: Tensor = self.head(trunk)
        return worth.reshape(-1)


def _value_head(network: Declared) -> ValueHead:
    assert network.value is not None
    return network.value


def _expln(log_std: Tensor) -> Tensor:
    """SB3's `expln`: exp below zero, and above it log(1 + x) + 1, which keeps the variance from exploding."""
    return torch.where(log_std <= 0, log_std.exp(), torch.log1p(log_std.clamp_min(0) + 1e-6) + 1)
