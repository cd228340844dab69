"""What a pathway says, as one row of numbers, and the actions that follow from it.

At the level of *features* a pathway says its features. At the level of *outputs* it says the parameters of its action
distribution, in the units of the environment:

- Box: mean and log standard deviation of a Gaussian, one after the other, `2 * actions` numbers;
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
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hubrl.errors import SpaceMismatch
from hubrl.formats.spaces import describe

Level = Literal["features", "outputs"]

LOG_STD_RANGE = (-20.0, 20.0)
"""Of what is said, in the environment's units; wider than any agent is."""

SQUASHED_LOG_STD_RANGE = (-20.0, 2.0)
"""SAC's and TQC's own, before the tanh."""


def width(space: spaces.Space[Any]) -> int:
    """How many numbers a pathway says at the level of outputs.

    Raises:
        SpaceMismatch: If the action space is none of Box, Discrete, MultiDiscrete and MultiBinary.
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
            raise SpaceMismatch(f"Actions of {describe(space)} cannot be spoken; Box, Discrete, MultiDiscrete and MultiBinary can.")


def gaussian(
    mean: Float[Tensor, "*rows actions"], log_std: Float[Tensor, "*#rows actions"], space: spaces.Box
) -> Float[Tensor, "*rows outputs"]:
    """Speech of a Gaussian; its mean is clipped to the bounds, as SB3 clips the action."""
    low, high = _bounds(space, mean)
    return torch.cat([mean.clamp(low, high), log_std.clamp(*LOG_STD_RANGE).expand_as(mean)], dim=-1)


def squashed_gaussian(
    mean: Float[Tensor, "*rows actions"], log_std: Float[Tensor, "*#rows actions"], space: spaces.Box
) -> Float[Tensor, "*rows outputs"]:
    """Speech of a Gaussian behind a tanh that spans the bounds, as SAC's, TQC's and TD3's.

    The mean is the deterministic action; the standard deviation is carried through the tanh to first order.
    """
    low, high = _bounds(space, mean)
    squashed = torch.tanh(mean)
    slope = (1 - squashed.square()) * (high - low) / 2
    action = low + (squashed + 1) * (high - low) / 2
    log_std = log_std.clamp(*SQUASHED_LOG_STD_RANGE) + slope.clamp_min(1e-8).log()
    return torch.cat([action, log_std.clamp(*LOG_STD_RANGE)], dim=-1)


def categorical(logits: Float[Tensor, "batch outputs"], space: spaces.Space[Any]) -> Float[Tensor, "batch outputs"]:
    """Speech of one or several categorical choices: their normalised log-probabilities."""
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [logits.shape[1]]
    return torch.cat([functional.log_softmax(part, dim=1) for part in logits.split(sizes, dim=1)], dim=1)


def greedy(q_values: Float[Tensor, "batch actions"], epsilon: float = 0.05) -> Float[Tensor, "batch actions"]:
    """Speech of an epsilon-greedy agent: what it *does*, so that no scale of Q-values is ever compared with another's."""
    n_actions = q_values.shape[1]
    others = math.log(epsilon / n_actions)
    best = math.log(1 - epsilon + epsilon / n_actions)
    speech = torch.full_like(q_values, others)
    return speech.scatter(1, q_values.argmax(dim=1, keepdim=True), best)


def mapped(
    speech: Float[Tensor, "batch outputs"], space: spaces.Space[Any], order: Sequence[int] | None, signs: Sequence[int] | None
) -> Float[Tensor, "batch outputs"]:
    """What is said in other actions: entry `i` becomes entry `order[i]` times `signs[i]`.

    Args:
        speech: What a source says, as above.
        space: The actions of its speech: Box or Discrete.
        order: For every entry (or choice) of the mapped action the source's; as they are if not given.
        signs: For every entry 1 or -1; all 1 if not given.
    """
    if not isinstance(space, spaces.Box):
        return speech if order is None else speech[:, list(order)]
    mean, log_std = speech.chunk(2, dim=1)
    if order is not None:
        mean, log_std = mean[:, list(order)], log_std[:, list(order)]
    if signs is not None:
        mean = mean * mean.new_tensor(list(signs))
    return torch.cat([mean, log_std], dim=1)


NEVER = math.log(1e-3)
"""Log-probability of an action that a source does not know."""


def by_meaning(
    speech: Float[Tensor, "batch own_actions"], own: Sequence[str], wanted: Sequence[str]
) -> Float[Tensor, "batch target_actions"]:
    """Log-probabilities of a target's discrete actions, from a source whose actions of the same meaning stand elsewhere.

    What the source would do and the target cannot is left out; what the target can do and the source does not know is
    hardly ever chosen.

    Args:
        speech: Log-probabilities of the source's actions.
        own: What the source's actions mean, in order (ALE's `NOOP`, `UPFIRE`, ...).
        wanted: What the target's actions mean, in order.
    """
    columns = [speech[:, own.index(meaning)] if meaning in own else torch.full_like(speech[:, 0], NEVER) for meaning in wanted]
    return functional.log_softmax(torch.stack(columns, dim=1), dim=1)


def act(speech: Float[Tensor, "batch outputs"], space: spaces.Space[Any], *, deterministic: bool) -> np.ndarray:
    """Actions in the environment's units: the most likely ones, or drawn from torch's generator."""
    match space:
        case spaces.Box():
            mean, log_std = speech.chunk(2, dim=1)
            drawn = mean if deterministic else torch.normal(mean, log_std.exp())
            actions = drawn.cpu().numpy().reshape(-1, *space.shape)
            clipped: np.ndarray = np.clip(actions, space.low, space.high).astype(space.dtype)
            return clipped
        case spaces.MultiBinary():
            drawn = (speech > 0).float() if deterministic else torch.bernoulli(torch.sigmoid(speech))
            return drawn.cpu().numpy().astype(space.dtype)
        case spaces.MultiDiscrete():
            parts = speech.split(space.nvec.tolist(), dim=1)
            return torch.stack([_choice(part, deterministic) for part in parts], dim=1).cpu().numpy()
        case _:
            start = int(space.start) if isinstance(space, spaces.Discrete) else 0
            return _choice(speech, deterministic).cpu().numpy() + start


def _choice(log_probabilities: Tensor, deterministic: bool) -> Tensor:
    if deterministic:
        return log_probabilities.argmax(dim=1)
    return torch.multinomial(log_probabilities.exp(), 1).squeeze(1)


def _bounds(space: spaces.Box, like: Tensor) -> tuple[Tensor, Tensor]:
    return _bounds_as(space.low.tobytes(), space.high.tobytes(), space.low.dtype.str, like.dtype, like.device)


@lru_cache(maxsize=64)
def _bounds_as(low: bytes, high: bytes, kind: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # Asked for in every step, of spaces whose hash would be made anew.
    lowest, highest = (torch.as_tensor(np.frombuffer(bound, kind).copy(), dtype=dtype, device=device) for bound in (low, high))
    return lowest, highest
