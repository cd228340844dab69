"""Gaussian noise that is a function of the observation, so that any buffer replays it."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

MAX_HASHED = 1024
"""Numbers of an observation that seed its noise, at most; of longer ones evenly spread entries."""


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
