"""The router and the pure functions of routing: replayable noise, stable top-k, pathway weights, dispatch.

Equations [ours, after Hub-Pathway, NeurIPS 2022]: the router says one number `z` for every pathway; in training
`z + noise * (softplus(N(x)) + 0.01)` with Gaussian noise; the `k` greatest are active, and a softmax over them gives
the pathway weights.
"""

from collections.abc import Callable, Sequence
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
from hubrl.nn.manual_mlp import ManualMLP
from hubrl.nn.parameter_packing import AutogradInputs, ParameterPack
from hubrl.sources.preprocessing import Observations

NOISE_FLOOR = 1e-2

MOST_HASHED = 1024
"""Numbers of an observation by which its noise is seeded."""

SMALLEST_IMAGE = 20
"""Pixels a side that the router's two convolutions need."""


class Weighted(NamedTuple):
    """Who is active, and how much each contributes."""

    log_weights: Float[Tensor, "batch pathways"]
    """Minus infinity where not active."""
    active: Bool[Tensor, "batch pathways"]


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


def replayable_noise(rows: Shaped[Tensor, "batch width"], key: int, n: int) -> Float[Tensor, "batch n"]:
    """Gaussian noise that is a function of the observation and a key, so that any buffer replays it.

    The same row under the same key gives the same numbers to the last bit, in a rollout and in every epoch of the
    update; another key gives others. Of long rows, which are images, a thousand numbers are looked at.

    Args:
        rows: Observations, flat, bytes or not; only their bits matter.
        key: Changes once a rollout.
        n: How many numbers a row.
    """
    looked_at = rows.detach()[:, :: -(-rows.shape[1] // MOST_HASHED)].float().contiguous().view(torch.int32)
    # A multilinear hash modulo 2^64, whose upper half is the better one; integers add up alike in any order.
    seeds = ((looked_at * _multipliers(looked_at.shape[1], rows.device)).sum(dim=1, keepdim=True) >> 32) + key * 0x632BE59B
    scrambled = _mix(seeds + _multipliers(n, rows.device)) & 0xFFFFFF
    noise: Tensor = torch.special.ndtri((scrambled.double() + 0.5) / 2**24)
    return noise.float()


@lru_cache(maxsize=64)
def _multipliers(count: int, device: torch.device) -> Int[Tensor, " count"]:
    """As many odd numbers of 64 bits, always the same."""
    places = torch.arange(1, 2 * count + 1, dtype=torch.int64)
    upper, lower = _mix(places * 0x9E3779B9).chunk(2)
    return ((upper << 32) + (lower | 1)).to(device)


def stable_top_k(z: Float[Tensor, "batch pathways"], k: int) -> Bool[Tensor, "batch pathways"]:
    """The `k` greatest of every row; of equals the first, which `torch.topk` does not promise."""
    order = z.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(z, dtype=torch.bool).scatter(1, order[:, :k], True)


def pathway_weights(z: Float[Tensor, "batch pathways"], k: int, trusted: Bool[Tensor, " pathways"] | None) -> Weighted:
    """Pathway weights: a softmax over the `k` greatest among the trusted.

    A softmax over all that is masked and renormalised gives the same weights, so there is no option for it.

    Args:
        z: The router's numbers.
        k: How many are active in a row; fewer where fewer are trusted.
        trusted: Who may be active at all; none for everybody.
    """
    if trusted is not None:
        z = z.masked_fill(~trusted, -torch.inf)
    active = stable_top_k(z, k) if k < z.shape[1] else torch.ones_like(z, dtype=torch.bool)
    if trusted is not None:
        active = active & trusted
    if k >= z.shape[1]:
        return Weighted(functional.log_softmax(z, dim=1), active)
    return Weighted(functional.log_softmax(z.masked_fill(~active, -torch.inf), dim=1), active)


def dispatch(
    speakers: Sequence[Callable[[Observations], Tensor]],
    observations: Observations,
    active: Bool[Tensor, "batch pathways"],
    width: int,
) -> Float[Tensor, "batch pathways width"]:
    """What every active pathway says; only they are computed, row by row. Zeros for the others."""
    columns = []
    for index, speak in enumerate(speakers):
        rows = active[:, index].nonzero().squeeze(1)
        if len(rows) == len(active):
            columns.append(speak(observations))
        else:
            silence = torch.zeros(len(active), width, device=active.device)
            columns.append(silence.index_copy(0, rows, speak(_rows(observations, rows))) if len(rows) else silence)
    return torch.stack(columns, dim=1)


def aggregate(speech: Float[Tensor, "batch pathways width"], weights: Float[Tensor, "batch pathways"]) -> Float[Tensor, "batch width"]:
    """The weighted sum of what the pathways say."""
    return torch.bmm(weights[:, None], speech).squeeze(1)


def _rows(observations: Observations, rows: Tensor) -> Observations:
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]


def _mix(x: Tensor) -> Tensor:
    """A bijective scramble of 32 bits held in 64 (multiply and shift)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x5A6B9D35) & 0xFFFFFFFF
    return x ^ (x >> 16)


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
