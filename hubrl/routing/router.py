"""The router: from an observation to one number for every pathway."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor, nn
from torch.nn import functional

from hubrl.formats.hub_spec import Precision
from hubrl.nn.bf16 import BF16Convolutions
from hubrl.nn.freezing import is_sb3_init
from hubrl.nn.manual_mlp import ManualMLP
from hubrl.nn.parameter_packing import AutogradInputs, ParameterPack
from hubrl.routing.replayable_noise import replayable_noise
from hubrl.sources.preprocessing import Observations

NOISE_FLOOR = 1e-2

SMALLEST_IMAGE = 20
"""Pixels a side that the router's two convolutions need."""


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero and that SB3's orthogonal initialisation leaves there."""

    def reset_parameters(self) -> None:
        """Start at zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def apply(self, fn: Any) -> "ZeroLinear":
        """`nn.Module.apply`, except for SB3's initialisation."""
        if not is_sb3_init(fn):
            super().apply(fn)
        return self


class Router(nn.Module):
    """The pathway generator: from an observation to one number for every pathway, all zero at the start.

    Flat observations are squashed by a symmetric logarithm, so that none of them saturates it whatever its unit;
    images go through two small convolutions.
    """

    def __init__(self, space: spaces.Space[Any], n_pathways: int, hidden_dim: int, precision: Precision = "float32") -> None:
        super().__init__()
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else [""]
        parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
        self.readers = nn.ModuleList(_image_reader(part, precision) if _is_image(part) else SymLog() for part in parts)
        self.reads_bytes = all(isinstance(reader, BF16Convolutions) for reader in self.readers)
        """Whether images may be given as the bytes they are, for the same numbers."""
        inputs = sum(_read_width(part, reader) for part, reader in zip(parts, self.readers, strict=True))
        self.hidden = nn.Sequential(nn.Linear(inputs, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, hidden_dim), nn.Tanh())
        self._packed: tuple[ParameterPack, tuple[ManualMLP, AutogradInputs]] | None = None
        self.mean = ZeroLinear(hidden_dim, n_pathways)
        self.spread = ZeroLinear(hidden_dim, n_pathways)

    def forward(self, observations: Observations, noise: Float[Tensor, "batch pathways"] | None = None) -> Float[Tensor, "batch pathways"]:
        """The router's numbers, with noise as wide as it says, if any is given."""
        latent = self.hidden(self.read(observations))
        z: Tensor = self.mean(latent)
        return z if noise is None else torch.addcmul(z, noise, functional.softplus(self.spread(latent)) + NOISE_FLOOR)

    def read(self, observations: Observations) -> Float[Tensor, "batch inputs"]:
        """What its hidden layers read."""
        given = self._by_key(observations)
        read = [reader(given[key]) for key, reader in zip(self.keys, self.readers, strict=True)]
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def manual_backward(self) -> tuple[ManualMLP, AutogradInputs]:
        """Its hidden layers, and all else but what reads images too, as autograd is told of it; the same while that is packed."""
        pack = getattr(self.mean.weight, "pack", None)
        if pack is None or self._packed is None or self._packed[0] is not pack:
            layers = ManualMLP(self.hidden)
            found = layers, AutogradInputs([*layers.parameters, self.mean.weight, self.mean.bias, self.spread.weight, self.spread.bias])
            self._packed = None if pack is None else (pack, found)
            return found
        return self._packed[1]

    def draw_noise(self, observations: Observations, key: int) -> Float[Tensor, "batch pathways"]:
        """Standard Gaussian noise, replayable: the same for the same observations under the same key."""
        given = self._by_key(observations)
        return replayable_noise(torch.cat([given[name].flatten(1) for name in self.keys], dim=1), key, self.mean.out_features)

    def _by_key(self, observations: Observations) -> dict[str, Tensor]:
        return observations if isinstance(observations, dict) else {"": observations}


class SymLog(nn.Module):
    """sign(x) log(1 + |x|), flat."""

    def forward(self, observations: Float[Tensor, " batch *obs"]) -> Float[Tensor, "batch width"]:
        """Squash and flatten."""
        flat = observations.flatten(1)
        return flat.abs().log1p().copysign(flat)


def _is_image(space: spaces.Space[Any]) -> bool:
    """Whether a part is an image large enough for the router's convolutions; smaller ones are read flat."""
    return isinstance(space, spaces.Box) and is_image_space(space, check_channels=False) and min(space.shape[1:]) >= SMALLEST_IMAGE


def _image_reader(space: spaces.Space[Any], precision: Precision) -> nn.Module:
    assert space.shape is not None
    channels = space.shape[0]
    kind = BF16Convolutions if precision == "bfloat16" else nn.Sequential
    return kind(nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 16, 4, stride=4), nn.ReLU(), nn.Flatten())


@torch.no_grad()
def _read_width(space: spaces.Space[Any], reader: nn.Module) -> int:
    if isinstance(reader, SymLog):
        return int(get_flattened_obs_dim(space))
    assert space.shape is not None
    return int(reader(torch.zeros(1, *space.shape)).shape[1])
