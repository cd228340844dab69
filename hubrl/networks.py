"""A source's networks, rebuilt from its card: encoder, action head and value head.

Parameter names are part of the file format: they are the keys of a source's `.safetensors` file.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from torch import Tensor, nn

from hubrl import speech
from hubrl.cards import ActionHead, Conv, Declared, Layers, SourceCard, Trunk, ValueHead
from hubrl.errors import BadConfig, BadFile, unknown

Observations = Tensor | dict[str, Tensor]
"""Observations as SB3 preprocesses them: floats, images divided by 255, discrete ones one-hot; a dict for a Dict space."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "selu": nn.SELU,
    "identity": nn.Identity,
}


NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of the convolutions of SB3's NatureCNN."""


class Networks(NamedTuple):
    """The parts of a source that hold weights."""

    encoder: nn.Module
    """From observations to features `(batch, width)`; `encoder.width` is their width."""
    action: nn.Module | None = None
    """From features to speech at the level of outputs `(batch, outputs)`."""
    value: nn.Module | None = None
    """Called with observations, trunk features and action; returns `(batch,)`."""


Builder = Callable[..., Networks]
"""Makes the networks of a card: `builder(card, **kwargs)`."""

_builders: dict[str, Builder] = {}
_hub_extractors: list[Callable[[spaces.Space[Any], dict[str, Any]], nn.Module]] = []


def register_hub_extractor(build_extractor: Callable[[spaces.Space[Any], dict[str, Any]], nn.Module]) -> None:
    """Let agents that were trained through a hub be sources themselves; the extractor above registers itself here."""
    _hub_extractors[:] = [build_extractor]


def register_network(name: str, builder: Builder) -> None:
    """Make `builder` known under `name`, so that cards may name it.

    This is the trusted way in for networks that hubrl cannot declare: a card from a file can only name what the
    user's own program registered, never a module or a function of its choice.

    Args:
        name: The name cards use.
        builder: Called as `builder(card, **kwargs)` with the card and its plain keyword arguments.

    Raises:
        BadConfig: If another builder has the name.
    """
    if _builders.get(name, builder) is not builder:
        raise BadConfig(f"Another network is registered as {name!r}; choose another name.")
    _builders[name] = builder


def build(card: SourceCard) -> Networks:
    """The networks that a card describes, with weights yet to be loaded.

    Raises:
        BadFile: If the card names a builder that this process has not registered, or describes no network.
    """
    network = card.network
    if not isinstance(network, Declared) and network.builder not in _builders:
        sentence = unknown("network builder", network.builder, _builders)
        raise BadFile(f"Source {card.name!r} needs a registered network. {sentence} Call hubrl.register_network first.")
    try:
        return _declared(card, network) if isinstance(network, Declared) else _builders[network.builder](card, **network.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, MemoryError) as error:
        raise BadFile(f"The networks that the card of source {card.name!r} describes cannot be built ({error}).") from error


def mlp(inputs: int, layers: Layers) -> nn.Sequential:
    """Linear layers, each followed by the activation."""
    widths = [inputs, *layers.widths]
    pairs = [(nn.Linear(a, b), ACTIVATIONS[layers.activation]()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain.from_iterable(pairs))


class Reader(nn.Module):
    """One trunk: flatten an observation, or run it through convolutions and perhaps a linear layer."""

    def __init__(self, space: spaces.Space[Any], trunk: Trunk) -> None:
        super().__init__()
        activation = ACTIVATIONS[trunk.activation]
        self.convs = nn.Sequential()
        self.width = int(get_flattened_obs_dim(space))
        shape = tuple(space.shape or ())
        for conv in trunk.convs:
            self.convs.append(nn.Conv2d(shape[0], conv.channels, conv.kernel, conv.stride, conv.padding))
            self.convs.append(activation())
            shape = (conv.channels, *(_after(size, conv) for size in shape[1:]))
            self.width = math.prod(shape)
        self.linear = nn.Sequential()
        if trunk.linear is not None:
            self.linear.extend([nn.Linear(self.width, trunk.linear), activation()])
            self.width = trunk.linear

    def forward(self, observations: Float[Tensor, " batch *obs"]) -> Float[Tensor, "batch width"]:
        """Features of one observation."""
        read: Tensor = self.linear(self.convs(observations).flatten(1))
        return read


class Trunks(nn.Module):
    """Every observation through its own trunk, one after the other in a row, as SB3's `CombinedExtractor`."""

    def __init__(self, space: spaces.Space[Any], trunks: dict[str, Trunk]) -> None:
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if set(parts) != set(trunks):
            raise BadFile(f"The card has trunks for {sorted(trunks)}, its observation space has {sorted(parts)}.")
        self.keys = list(parts)
        self.readers = nn.ModuleList(Reader(parts[key], trunks[key]) for key in self.keys)
        self.width = sum(reader.width for reader in self.readers if isinstance(reader, Reader))

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of all observations."""
        if isinstance(observations, Tensor):
            read: Tensor = self.readers[0](observations)
            return read
        return torch.cat([reader(observations[key]) for key, reader in zip(self.keys, self.readers, strict=True)], dim=1)


class HubTrunk(nn.Module):
    """The features of a hub that the agent was itself trained on."""

    def __init__(self, space: spaces.Space[Any], hub: dict[str, Any]) -> None:
        super().__init__()
        self.extractor = _hub_extractors[0](space, hub)
        self.width = int(self.extractor.features_dim)  # type: ignore[arg-type]

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of all observations."""
        read: Tensor = self.extractor(observations)
        return read


def _trunks(space: spaces.Space[Any], network: Declared) -> Trunks | HubTrunk:
    return Trunks(space, network.trunks) if network.hub is None else HubTrunk(space, network.hub)


class Encoder(nn.Module):
    """Trunks, then the agent's own hidden layers."""

    def __init__(self, space: spaces.Space[Any], network: Declared) -> None:
        super().__init__()
        self.trunks = _trunks(space, network)
        self.hidden = mlp(self.trunks.width, network.hidden)
        self.width = [self.trunks.width, *network.hidden.widths][-1]

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """The features that the agent's own head reads."""
        features: Tensor = self.hidden(self.trunks(observations))
        return features


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
        return (speech.squashed_gaussian if squashed else speech.gaussian)(mean, log_std, self.space)

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
        return speech.squashed_gaussian(mean, torch.full_like(mean, math.log(0.1)), self.space)


class CategoricalAction(nn.Module):
    """Logits over the choices of Discrete or MultiDiscrete actions, or over the bits of MultiBinary ones."""

    def __init__(self, width: int, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.logits = nn.Linear(width, speech.width(space))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """Log-probabilities of the choices, or logits of the bits."""
        logits: Tensor = self.logits(features)
        return logits if isinstance(self.space, spaces.MultiBinary) else speech.categorical(logits, self.space)


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
        return speech.greedy(self.q_values(features))


class StateValue(nn.Module):
    """V(s), from the encoder's trunks or from trunks of its own."""

    def __init__(self, space: spaces.Space[Any], network: Declared, trunk_width: int) -> None:
        super().__init__()
        head = _value_head(network)
        self.trunks = _trunks(space, network) if head.trunk == "own" else None
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
        self.trunks = _trunks(space, network) if head.trunk == "own" else None
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
            return speech.categorical(said, self.space)
        if 2 * said.shape[1] == speech.width(self.space):
            return speech.gaussian(said, said.new_full((1, said.shape[1]), math.log(0.1)), self.space)
        return speech.gaussian(said.chunk(2, dim=1)[0], said.chunk(2, dim=1)[1], self.space)


class OwnValue(nn.Module):
    """A user's value head, called as every other."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, observations: Observations, trunk: Tensor, action: Tensor) -> Float[Tensor, " batch"]:
        """What each observation is worth, read from the encoder's features."""
        worth: Tensor = self.head(trunk)
        return worth.reshape(-1)


def _declared(card: SourceCard, network: Declared) -> Networks:
    encoder = Encoder(card.observations, network)
    if network.action is None:
        return Networks(encoder)
    actions = card.actions
    if actions is None:
        raise BadFile(f"Source {card.name!r} has an action head and no action space.")
    action = _action_head(encoder.width, actions, network.action)
    if isinstance(action, GreedyAction):
        return Networks(encoder, action, GreedyValue())
    if network.value is None:
        return Networks(encoder, action)
    if network.value.kind == "state":
        return Networks(encoder, action, StateValue(card.observations, network, encoder.trunks.width))
    assert isinstance(actions, spaces.Box)
    return Networks(encoder, action, ActionValue(card.observations, network, encoder.trunks.width, actions))


def _action_head(width: int, space: spaces.Space[Any], head: ActionHead) -> nn.Module:
    match head.kind, space:
        case "gaussian" | "squashed-gaussian", spaces.Box():
            return GaussianAction(width, space, head)
        case "deterministic", spaces.Box():
            return DeterministicAction(width, space)
        case "q-values" | "quantiles", spaces.Discrete():
            return GreedyAction(width, space, head.quantiles)
        case "categorical", spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return CategoricalAction(width, space)
        case _:
            raise BadFile(f"A {head.kind} head cannot act in {space}.")


def _value_head(network: Declared) -> ValueHead:
    assert network.value is not None
    return network.value


def _after(size: int, conv: Conv) -> int:
    left = (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
    if left < 1:
        raise BadFile(f"An image side of {size} pixels is too small for a kernel of {conv.kernel}.")
    return left


def _expln(log_std: Tensor) -> Tensor:
    """SB3's `expln`: exp below zero, and above it log(1 + x) + 1, which keeps the variance from exploding."""
    return torch.where(log_std <= 0, log_std.exp(), torch.log1p(log_std.clamp_min(0) + 1e-6) + 1)
