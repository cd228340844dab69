"""A source's encoder, rebuilt from its card: trunks over the observation, then hidden layers.

Parameter names are part of the file format: the keys of a source's `.safetensors` file.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from torch import Tensor, nn

from hubrl.errors import BadFile
from hubrl.formats.cards import Conv, Declared, Layers, Trunk
from hubrl.sources.preprocessing import Observations

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

HubExtractorBuilder = Callable[[spaces.Space[Any], dict[str, Any]], nn.Module]

_hub_extractors: list[HubExtractorBuilder] = []


def register_hub_extractor(build_extractor: HubExtractorBuilder) -> None:
    """Make agents that were trained through a hub possible sources; `HubExtractor` calls this.

    Args:
        build_extractor: Called with the observation space and the hub as plain data.
    """
    _hub_extractors[:] = [build_extractor]


def mlp(inputs: int, layers: Layers) -> nn.Sequential:
    """Linear layers, each followed by the activation."""
    widths = [inputs, *layers.widths]
    pairs = [
        (nn.Linear(before, after), ACTIVATIONS[layers.activation]())
        for before, after in itertools.pairwise(widths)
    ]
    return nn.Sequential(*itertools.chain.from_iterable(pairs))


class Reader(nn.Module):
    """One trunk: convolutions and perhaps a linear layer, or flattening alone.

    Raises:
        BadFile: If a kernel does not fit into the image.
    """

    def __init__(self, space: spaces.Space[Any], trunk: Trunk) -> None:
        super().__init__()
        activation = ACTIVATIONS[trunk.activation]
        self.convs = nn.Sequential()
        self.width = int(get_flattened_obs_dim(space))
        shape = tuple(space.shape or ())
        for conv in trunk.convs:
            self.convs.append(
                nn.Conv2d(shape[0], conv.channels, conv.kernel, conv.stride, conv.padding)
            )
            self.convs.append(activation())
            shape = (conv.channels, *(_size_after(size, conv) for size in shape[1:]))
            self.width = math.prod(shape)
        self.linear = nn.Sequential()
        if trunk.linear is not None:
            self.linear.extend([nn.Linear(self.width, trunk.linear), activation()])
            self.width = trunk.linear

    def forward(self, observations: Float[Tensor, " batch *obs"]) -> Float[Tensor, "batch width"]:
        """Features of one part of the observation."""
        features: Tensor = self.linear(self.convs(observations).flatten(1))
        return features


class Trunks(nn.Module):
    """A trunk for each part of the observation, features concatenated as in `CombinedExtractor`.

    Raises:
        BadFile: If the card's trunks are not those of the space.
    """

    def __init__(self, space: spaces.Space[Any], trunks: dict[str, Trunk]) -> None:
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if set(parts) != set(trunks):
            raise BadFile(
                f"The card has trunks for {sorted(trunks)}, "
                f"its observation space has {sorted(parts)}."
            )
        self.keys = list(parts)
        self.readers = nn.ModuleList(Reader(parts[key], trunks[key]) for key in self.keys)
        self.width = sum(reader.width for reader in self.readers if isinstance(reader, Reader))

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of all parts."""
        if isinstance(observations, Tensor):
            features: Tensor = self.readers[0](observations)
            return features
        pairs = zip(self.keys, self.readers, strict=True)
        return torch.cat([reader(observations[key]) for key, reader in pairs], dim=1)


class HubTrunk(nn.Module):
    """The features extractor of an agent that was itself trained through a hub."""

    def __init__(self, space: spaces.Space[Any], hub: dict[str, Any]) -> None:
        super().__init__()
        self.extractor = _hub_extractors[0](space, hub)
        self.width = int(self.extractor.features_dim)  # type: ignore[arg-type]

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of the observation."""
        features: Tensor = self.extractor(observations)
        return features


def build_trunks(space: spaces.Space[Any], network: Declared) -> Trunks | HubTrunk:
    """The trunks that a card declares."""
    hub = network.hub
    return Trunks(space, network.trunks) if hub is None else HubTrunk(space, hub)


class Encoder(nn.Module):
    """Trunks, then the agent's own hidden layers."""

    def __init__(self, space: spaces.Space[Any], network: Declared) -> None:
        super().__init__()
        self.trunks = build_trunks(space, network)
        self.hidden = mlp(self.trunks.width, network.hidden)
        self.width = [self.trunks.width, *network.hidden.widths][-1]

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features, the input of the agent's own action head."""
        features: Tensor = self.hidden(self.trunks(observations))
        return features


def _size_after(size: int, conv: Conv) -> int:
    left = (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
    if left < 1:
        raise BadFile(f"An image side of {size} pixels is too small for a kernel of {conv.kernel}.")
    return left
