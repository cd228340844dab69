"""Action parameters: a source's or target's action distribution as one row of numbers.

They are in the units of the environment:

- Box: mean, then log standard deviation of a Gaussian, `2 * actions` numbers;
- Discrete, MultiDiscrete: log-probabilities of every choice;
- MultiBinary: the logit of every bit.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from hubrl.errors import SpaceMismatch
from hubrl.formats.spaces import describe

Level = Literal["features", "outputs"]
"""Level at which a target reads its sources: their features, or their action parameters."""

LOG_STD_RANGE = (-20.0, 20.0)
"""Range in the environment's units; wider than that of any agent."""

SQUASHED_LOG_STD_RANGE = (-20.0, 2.0)
"""SAC's and TQC's own range, before the tanh."""

UNKNOWN_ACTION = math.log(1e-3)
"""Log-probability of an action that a source does not have, before normalisation."""

FORBIDDEN = -1e8
"""Logit of a choice that a mask forbids, as in sb3-contrib (`maskable/distributions.py`)."""


def width(space: spaces.Space[Any]) -> int:
    """Number of action parameters.

    Raises:
        SpaceMismatch: If the space is none of Box, Discrete, MultiDiscrete and MultiBinary.
    """
    match space:
        case spaces.Box():
            return 2 * math.prod(space.shape)
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case spaces.MultiBinary():
            return math.prod(space.shape or ())
        case _:
            raise SpaceMismatch(
                f"Actions of {describe(space)} have no action parameters; "
                "use Box, Discrete, MultiDiscrete or MultiBinary."
            )


def gaussian(
    mean: Float[Tensor, "*rows actions"],
    log_std: Float[Tensor, "*#rows actions"],
    space: spaces.Box,
) -> Float[Tensor, "*rows outputs"]:
    """Parameters of a Gaussian, its mean clipped to the bounds as SB3 clips the action."""
    low, high = _bounds(space, mean)
    log_std = log_std.clamp(*LOG_STD_RANGE).expand_as(mean)
    return torch.cat([mean.clamp(low, high), log_std], dim=-1)


def squashed_gaussian(
    mean: Float[Tensor, "*rows actions"],
    log_std: Float[Tensor, "*#rows actions"],
    space: spaces.Box,
) -> Float[Tensor, "*rows outputs"]:
    """Parameters of a Gaussian behind a tanh that spans the bounds, as SAC's, TQC's and TD3's.

    The mean is the deterministic action; the standard deviation passes the tanh to first order.
    """
    low, high = _bounds(space, mean)
    squashed = torch.tanh(mean)
    slope = (1 - squashed.square()) * (high - low) / 2
    action = low + (squashed + 1) * (high - low) / 2
    log_std = log_std.clamp(*SQUASHED_LOG_STD_RANGE) + slope.clamp_min(1e-8).log()
    return torch.cat([action, log_std.clamp(*LOG_STD_RANGE)], dim=-1)


def categorical(
    logits: Float[Tensor, "batch outputs"], space: spaces.Space[Any]
) -> Float[Tensor, "batch outputs"]:
    """Normalised log-probabilities of each choice; logits of MultiBinary bits as they are."""
    if isinstance(space, spaces.MultiBinary):
        return logits
    whole = [logits.shape[1]]
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else whole
    return torch.cat([part.log_softmax(dim=1) for part in logits.split(sizes, dim=1)], dim=1)


def mask_width(space: spaces.Space[Any]) -> int | None:
    """Number of choices of an observation that a mask allows or not; None for a Box.

    As in sb3-contrib, a bit of MultiBinary has two.
    """
    if isinstance(space, spaces.Box):
        return None
    return width(space) * (2 if isinstance(space, spaces.MultiBinary) else 1)


def mask(
    params: Float[Tensor, "batch outputs"],
    space: spaces.Space[Any],
    allowed: Bool[Tensor, "batch choices"],
) -> Float[Tensor, "batch outputs"]:
    """Parameters in which forbidden choices have no probability.

    Args:
        params: Log-probabilities, or logits of bits.
        space: The actions, no Box.
        allowed: Whether each choice is allowed, in the order of MaskablePPO's masks.
    """
    if not isinstance(space, spaces.MultiBinary):
        return categorical(params.masked_fill(~allowed, FORBIDDEN), space)
    zero, one = allowed[:, ::2], allowed[:, 1::2]
    params = params.masked_fill(~zero, -FORBIDDEN).masked_fill(~one, FORBIDDEN)
    return params.masked_fill(~zero & ~one, 0.0)


def greedy(
    q_values: Float[Tensor, "batch actions"], epsilon: float = 0.05
) -> Float[Tensor, "batch actions"]:
    """Log-probabilities of the epsilon-greedy policy, which have no scale of Q-values."""
    n_actions = q_values.shape[1]
    log_probs = torch.full_like(q_values, math.log(epsilon / n_actions))
    best = math.log(1 - epsilon + epsilon / n_actions)
    return log_probs.scatter(1, q_values.argmax(dim=1, keepdim=True), best)


def remap(
    params: Float[Tensor, "batch outputs"],
    space: spaces.Space[Any],
    order: Sequence[int] | None,
    signs: Sequence[int] | None,
) -> Float[Tensor, "batch outputs"]:
    """Parameters with entry `i` replaced by entry `order[i]` times `signs[i]`.

    Args:
        params: A source's action parameters.
        space: Their actions: Box or Discrete.
        order: The source's entry (or choice) for every entry of the result; None for its own.
        signs: 1 or -1 for every entry; None for 1.
    """
    if not isinstance(space, spaces.Box):
        return params if order is None else params[:, list(order)]
    mean, log_std = params.chunk(2, dim=1)
    if order is not None:
        mean, log_std = mean[:, list(order)], log_std[:, list(order)]
    if signs is not None:
        mean = mean * mean.new_tensor(list(signs))
    return torch.cat([mean, log_std], dim=1)


def match_meanings(
    log_probs: Float[Tensor, "batch own_actions"], own: Sequence[str], wanted: Sequence[str]
) -> Float[Tensor, "batch target_actions"]:
    """Log-probabilities of a target's discrete actions, from a source's of the same meanings.

    Actions of the source alone are left out; actions of the target alone are hardly ever chosen.

    Args:
        log_probs: Log-probabilities of the source's actions.
        own: Meanings of the source's actions, in order (ALE's `NOOP`, `UPFIRE`, ...).
        wanted: Meanings of the target's actions, in order.
    """
    unknown = torch.full_like(log_probs[:, 0], UNKNOWN_ACTION)
    columns = [log_probs[:, own.index(name)] if name in own else unknown for name in wanted]
    return functional.log_softmax(torch.stack(columns, dim=1), dim=1)


def get_actions(
    params: Float[Tensor, "batch outputs"], space: spaces.Space[Any], *, deterministic: bool
) -> np.ndarray:
    """Actions `(batch, *actions)` in the environment's units.

    Args:
        params: Action parameters.
        space: The actions.
        deterministic: Whether to take the most likely action instead of a draw from torch's
            generator.
    """
    match space:
        case spaces.Box():
            mean, log_std = params.chunk(2, dim=1)
            drawn = mean if deterministic else torch.normal(mean, log_std.exp())
            actions = drawn.cpu().numpy().reshape(-1, *space.shape)
            # As SB3's `predict`: whole numbers are left to the environment, whatever the dtype.
            clipped: np.ndarray = np.clip(actions, space.low, space.high)
            return clipped
        case spaces.MultiBinary():
            bits = (params > 0).float() if deterministic else torch.bernoulli(params.sigmoid())
            return bits.cpu().numpy().astype(space.dtype)
        case spaces.MultiDiscrete():
            parts = params.split(space.nvec.tolist(), dim=1)
            return torch.stack([_choose(part, deterministic) for part in parts], 1).cpu().numpy()
        case _:
            # As SB3, which never adds `Discrete.start`: agents learned with 0 .. n - 1.
            return _choose(params, deterministic).cpu().numpy()


def _choose(log_probs: Tensor, deterministic: bool) -> Tensor:
    if deterministic:
        return log_probs.argmax(dim=1)
    return torch.multinomial(log_probs.exp(), 1).squeeze(1)


def _bounds(space: spaces.Box, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = space.low, space.high
    return _cached_bounds(low.tobytes(), high.tobytes(), low.dtype.str, like.dtype, like.device)


@lru_cache(maxsize=64)
def _cached_bounds(
    low: bytes, high: bytes, kind: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Needed in every step, for spaces whose hash takes longer than their bytes.
    arrays = (np.frombuffer(bound, kind).copy() for bound in (low, high))
    lowest, highest = (torch.as_tensor(array, dtype=dtype, device=device) for array in arrays)
    return lowest, highest
