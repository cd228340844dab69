"""A step of a rollout in numpy: what a router weighs and a decider decides, for a few rows and without a gradient.

A rollout asks for a dozen rows at a time. Of so few an operation of torch costs what calling it costs, three times what one of numpy
does. The formulas are those of `hubrl.routing` and `hubrl.decision`, and the same numbers are drawn from torch's generator; results
differ as float32 does when it is added up in another order.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hubrl.decision import Decider
from hubrl.nn.manual_mlp import NUMPY_ACTIVATIONS, ManualMLP
from hubrl.nn.popart import PopArtLinear
from hubrl.outputs import ALONE, solo
from hubrl.routing import NOISE_FLOOR, Router, SymLog

Rows = Float[np.ndarray, "batch _"]


class Done(NamedTuple):
    """What was decided, row by row."""

    acted: Int[Tensor, " batch"]
    said: Rows
    """What the source that acts says itself; anything where the fresh pathway acts."""
    actions: Tensor
    values: Float[np.ndarray, "batch 1"]
    log_prob: Float[np.ndarray, " batch"]
    log_weights: Rows


class Step:
    """Decides for as long as no weight changes, as in a rollout.

    Args:
        decider: As which it decides.
        router: As which it weighs.
        trusted: For every pathway, whether it may be active; all that may are.
    """

    def __init__(self, decider: Decider, router: Router, trusted: Sequence[bool]) -> None:
        self.decider = decider
        self.dropped = None if all(trusted) else ~np.array(trusted)
        self.actor, self.critic, self.router = _layers(decider.actor), _layers(decider.critic), _layers(ManualMLP(router.hidden))
        self.numbers = _joined([router.mean, router.spread])
        self.value = _joined([decider.value])
        self.units = decider.value.units if isinstance(decider.value, PopArtLinear) else (0.0, 1.0)
        self.heads = _joined(decider.heads) if decider.heads else None
        self.names = [name for name in ("fresh", "residual", "stickiness") if getattr(decider, name) is not None]
        self.bounds = np.cumsum([layer.out_features for layer in decider.heads])[:-1].tolist()
        kernels = [layer[0] for layer in (*self.actor, *self.critic, *self.router)]
        self.largest = max(kernel.size for kernel in (*kernels, self.numbers[0], self.value[0]))
        """Weights of the largest layer."""
        self.stds = np.stack([_array(std) for std in decider.stds]) if decider.stds else None

    @staticmethod
    def serves(router: nn.Module | None, k: int, n_pathways: int) -> bool:
        """Whether a router's numbers are known here: it reads flat observations, and lets all pathways be active."""
        if not isinstance(router, Router) or k < n_pathways or not ManualMLP.supports(router.hidden):
            return False
        return all(isinstance(reader, SymLog) for reader in router.readers) and len(router.readers) == 1

    def __call__(
        self,
        observed: Rows,
        heard: Float[np.ndarray, "batch sources outputs"],
        noise: Rows | None,
        previous: Int[np.ndarray, " batch"],
        calm: Bool[np.ndarray, " batch"] | None,
        *,
        deterministic: bool = False,
    ) -> Done:
        """See `Decider.decide`.

        Args:
            observed: Observations, flat.
            heard: What every source itself says of them.
            noise: The router's; none for no noise.
            previous: Who acted before, as far as that binds.
            calm: Where nothing is to be drawn; none for nowhere.
            deterministic: Whether the likeliest is done everywhere.
        """
        rows, n_sources = np.arange(len(observed)), self.decider.n_sources
        log_weights = self._weighed(observed, noise)
        latent = _through(self.actor, observed)
        heads = {} if self.heads is None else self._heads(latent)
        alone = previous <= ALONE
        transition = log_weights
        if self.decider.stickiness is not None:
            there = np.arange(log_weights.shape[1]) == previous[:, None]
            transition = _log_softmax(log_weights + there * heads["stickiness"])
        acted = _drawn(transition, calm, deterministic=deterministic)
        acted = np.where(alone, solo(previous), acted)
        chosen = np.where(alone, 0.0, transition[rows, acted])
        said = heard[rows, np.minimum(acted, n_sources - 1)]
        fresh = (acted == n_sources)[:, None]
        correction = None if "residual" not in heads else np.where(alone[:, None], 0.0, heads["residual"])
        if isinstance(self.decider.space, spaces.Discrete):
            spoken = said if correction is None else said + correction
            spoken = spoken if "fresh" not in heads else np.where(fresh, heads["fresh"], spoken)
            spoken = _log_softmax(spoken)
            choice = _drawn(spoken, calm, deterministic=deterministic)
            actions, likelihood = torch.from_numpy(choice), spoken[rows, choice]
        else:
            actions, likelihood = self._acted(said, heads, correction, acted, fresh, calm, deterministic=deterministic)
        shift, scale = self.units
        values = (_through(self.critic, observed) @ self.value[0] + self.value[1]) * np.float32(scale) + np.float32(shift)
        return Done(torch.from_numpy(acted), said, actions, values, (chosen + likelihood).astype(np.float32), log_weights)

    def _weighed(self, observed: Rows, noise: Rows | None) -> Rows:
        """Logarithms of the pathway weights."""
        squashed = np.copysign(np.log1p(np.abs(observed)), observed)
        kernel, bias = self.numbers
        z, wide = np.split(_through(self.router, squashed) @ kernel + bias, 2, axis=1)
        if noise is not None:
            z = z + noise * (np.logaddexp(wide, 0) + NOISE_FLOOR)
        if self.dropped is not None:
            z = np.where(self.dropped, -np.inf, z)
        return _log_softmax(z)

    def _heads(self, latent: Rows) -> dict[str, Rows]:
        """What each layer says that reads the actor's hidden layers."""
        assert self.heads is not None
        kernel, bias = self.heads
        parts = np.split(latent @ kernel + bias, self.bounds, axis=1)
        return dict(zip(self.names, parts, strict=True))

    def _acted(
        self,
        said: Rows,
        heads: dict[str, Rows],
        correction: Rows | None,
        acted: Int[np.ndarray, " batch"],
        fresh: Bool[np.ndarray, "batch 1"],
        calm: Bool[np.ndarray, " batch"] | None,
        *,
        deterministic: bool,
    ) -> tuple[Tensor, Float[np.ndarray, " batch"]]:
        """Continuous actions, and the logarithms of how likely they are."""
        mean, log_std = np.split(said, 2, axis=1)
        if self.stds is not None:
            log_std = self.stds[acted] if self.decider.log_stds else np.where(fresh, self.stds[-1], log_std)
        std = np.exp(log_std)
        if correction is not None:
            mean = mean + correction * std
        if "fresh" in heads:
            mean = np.where(fresh, heads["fresh"], mean)
        actions = torch.from_numpy(mean)
        if not deterministic:
            drawn = torch.normal(actions, torch.from_numpy(std))
            actions = drawn if calm is None else torch.where(torch.from_numpy(calm)[:, None], actions, drawn)
        scaled = (actions.numpy() - mean) / std
        squares = np.add.reduce(log_std + 0.5 * scaled * scaled, axis=1)
        return actions, -0.5 * math.log(2 * math.pi) * mean.shape[1] - squares


def _drawn(logits: Rows, calm: Bool[np.ndarray, " batch"] | None, *, deterministic: bool) -> Int[np.ndarray, " batch"]:
    """As `hubrl.distributions.draw_pathway`, of logarithms of likelihoods."""
    likeliest: Int[np.ndarray, " batch"] = logits.argmax(axis=1)
    if deterministic:
        return likeliest
    clocks = torch.empty(logits.shape).exponential_(1.0).numpy()
    drawn: Int[np.ndarray, " batch"] = (np.exp(logits) / clocks).argmax(axis=1)
    return drawn if calm is None else np.where(calm, likeliest, drawn)


def _log_softmax(rows: Rows) -> Rows:
    lower = rows - np.maximum.reduce(rows, axis=1, keepdims=True)
    return lower - np.log(np.add.reduce(np.exp(lower), axis=1, keepdims=True))


def _through(layers: list[tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]], rows: Rows) -> Rows:
    for kernel, bias, activation in layers:
        rows = activation(rows @ kernel + bias)
    return rows


def _layers(network: ManualMLP) -> list[tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    said = [NUMPY_ACTIVATIONS[type(activation)] for activation in network.activations]
    return [(*_joined([layer]), activation) for layer, activation in zip(network.linear, said, strict=True)]


def _joined(layers: Sequence[nn.Linear]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel, inputs first, and bias of some layers that read the same, side by side."""
    kernels = [_array(layer.weight) for layer in layers]
    return np.concatenate(kernels).T.copy(), np.concatenate([_array(layer.bias) for layer in layers])


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy()
    return array
