"""The router: from an observation to one logit for every pathway."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int, Shaped
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor, nn
from torch.nn import functional

from hubrl.formats.hub_spec import Precision
from hubrl.nn.bf16 import BF16Convolutions
from hubrl.nn.freezing import is_sb3_init
from hubrl.nn.manual_gradients import symlog
from hubrl.sources.preprocessing import Observations

NOISE_FLOOR = 1e-2
"""Least scale of the router's noise."""

MAX_HASHED = 1024
"""Numbers of an observation that seed its noise, at most; of longer ones evenly spread entries."""

SMALLEST_IMAGE = 20
"""Pixels a side that the router's two convolutions need."""


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, also behind SB3's orthogonal initialisation."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def apply(self, fn: Any) -> "ZeroLinear":
        """`nn.Module.apply`, except for SB3's initialisation."""
        if not is_sb3_init(fn):
            super().apply(fn)
        return self


class Router(nn.Module):
    """The pathway generator: a logit for every pathway, all zero at the start.

    Flat observations go through a symmetric logarithm, so that no unit saturates it; images go
    through two small convolutions.

    Args:
        space: Observations that it reads.
        n_pathways: Number of logits.
        hidden_dim: Width of its two hidden layers.
        precision: Precision of the convolutions.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        n_pathways: int,
        hidden_dim: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else [""]
        parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
        self.readers = nn.ModuleList(
            _image_reader(part, precision) if _is_image(part) else SymLog() for part in parts
        )
        self.reads_bytes = all(isinstance(reader, BF16Convolutions) for reader in self.readers)
        """Whether uint8 images may be given undivided, for the same logits."""
        inputs = sum(
            _reader_width(part, reader) for part, reader in zip(parts, self.readers, strict=True)
        )
        self.width = inputs
        """Width of what `read` returns."""
        self.hidden = nn.Sequential(
            nn.Linear(inputs, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, hidden_dim), nn.Tanh()
        )
        self.mean = ZeroLinear(hidden_dim, n_pathways)
        self.spread = ZeroLinear(hidden_dim, n_pathways)

    def forward(
        self, observations: Observations, noise: Float[Tensor, "batch pathways"] | None = None
    ) -> Float[Tensor, "batch pathways"]:
        """Logits; with noise scaled by a learned function of the observation, if any is given."""
        latent = self.hidden(self.read(observations))
        z: Tensor = self.mean(latent)
        if noise is None:
            return z
        return torch.addcmul(z, noise, functional.softplus(self.spread(latent)) + NOISE_FLOOR)

    def read(self, observations: Observations) -> Float[Tensor, "batch inputs"]:
        """Inputs of the hidden layers."""
        parts = self._by_key(observations)
        read = [reader(parts[key]) for key, reader in zip(self.keys, self.readers, strict=True)]
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def draw_noise(self, observations: Observations, key: int) -> Float[Tensor, "batch pathways"]:
        """Replayable noise: equal for equal observations under an equal key."""
        parts = self._by_key(observations)
        rows = torch.cat([parts[name].flatten(1) for name in self.keys], dim=1)
        return replayable_noise(rows, key, self.mean.out_features)

    def _by_key(self, observations: Observations) -> dict[str, Tensor]:
        return observations if isinstance(observations, dict) else {"": observations}


class Routing(NamedTuple):
    """A router and the rule that makes pathway weights of its logits."""

    router: Router
    noisy: bool
    """Whether noise is added to the logits in training."""
    top_k: int
    """Most pathways that are active for one observation."""
    trusted: Bool[Tensor, " pathways"] | None
    """Pathways that may be active; none for all."""
    explore_coef: float
    """Coefficient of the exploration loss."""


class SymLog(nn.Module):
    """sign(x) log(1 + |x|), flat."""

    def forward(self, observations: Float[Tensor, " batch *obs"]) -> Float[Tensor, "batch width"]:
        """Flat observations behind the symmetric logarithm."""
        return symlog(observations.flatten(1))


def _is_image(space: spaces.Space[Any]) -> bool:
    """Whether a part is an image large enough for the router's convolutions."""
    return (
        isinstance(space, spaces.Box)
        and is_image_space(space, check_channels=False)
        and min(space.shape[1:]) >= SMALLEST_IMAGE
    )


def _image_reader(space: spaces.Space[Any], precision: Precision) -> nn.Module:
    assert space.shape is not None
    first, second = nn.Conv2d(space.shape[0], 16, 8, stride=4), nn.Conv2d(16, 16, 4, stride=4)
    kind = BF16Convolutions if precision == "bfloat16" else nn.Sequential
    return kind(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten())


@torch.no_grad()
def _reader_width(space: spaces.Space[Any], reader: nn.Module) -> int:
    if isinstance(reader, SymLog):
        return int(get_flattened_obs_dim(space))
    assert space.shape is not None
    return int(reader(torch.zeros(1, *space.shape)).shape[1])


def replayable_noise(
    rows: Shaped[Tensor, "batch width"], key: int, n: int
) -> Float[Tensor, "batch n"]:
    """Standard Gaussian noise, equal to the last bit for equal rows under an equal key.

    So a rollout and every epoch of its update have the same noise without storing it.

    Args:
        rows: Flat observations, bytes or floats; only their bits matter.
        key: Seed of a rollout.
        n: Numbers a row.
    """
    stride = -(-rows.shape[1] // MAX_HASHED)
    hashed = rows.detach()[:, ::stride].float().contiguous().view(torch.int32)
    # A multilinear hash modulo 2^64, whose upper half is the better one; integer sums do not
    # depend on their order.
    products = hashed * _multipliers(hashed.shape[1], rows.device)
    seeds = (products.sum(dim=1, keepdim=True) >> 32) + key * 0x632BE59B
    scrambled = _mix(seeds + _multipliers(n, rows.device)) & 0xFFFFFF
    noise: Tensor = torch.special.ndtri((scrambled.double() + 0.5) / 2**24)
    return noise.float()


@lru_cache(maxsize=64)
def _multipliers(count: int, device: torch.device) -> Int[Tensor, " count"]:
    """Odd numbers of 64 bits, always the same."""
    indices = torch.arange(1, 2 * count + 1, dtype=torch.int64)
    upper, lower = _mix(indices * 0x9E3779B9).chunk(2)
    return ((upper << 32) + (lower | 1)).to(device)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits held in 64 (multiply and shift)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x5A6B9D35) & 0xFFFFFFFF
    return x ^ (x >> 16)
