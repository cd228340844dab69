"""Noise that is a function of the observation, so that any buffer replays it."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

MOST_HASHED = 1024
"""Numbers of an observation by which its noise is seeded."""


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


def _mix(x: Tensor) -> Tensor:
    """A bijective scramble of 32 bits held in 64 (multiply and shift)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x5A6B9D35) & 0xFFFFFFFF
    return x ^ (x >> 16)
