"""PopArt (van Hasselt et al., NeurIPS 2016): a critic whose output has the scale of the returns.

A new critic returns about zero. Where sources earn much from the first step on, its weights, which
Adam moves by a learning rate a step, would take a hundred rollouts to reach the size of the
returns; until then a fall, which loses all future rewards, has no cost.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MIN_RELATIVE_STD = 0.1
"""Least standard deviation of returns, as a share of their mean's size; steady gaits vary less."""

NEWEST_SHARE = 0.1
"""Least share of the newest rollout in the running moments."""

MIN_HORIZONS = 2
"""Steps between two rescalings, in horizons `1 / (1 - gamma)`."""

MAX_STEPS = 2048
"""Steps between two rescalings that suffice for every discount."""


class PopArtLinear(nn.Linear):
    """The last layer of a critic, with a shifted and scaled output; the identity shift at first.

    The gradient of a squared error reaches the layer as if values and returns were divided by
    the scale.

    Args:
        layer: The layer to replace; its parameters are taken over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self._units: tuple[float, float] | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.clear_units()

    def clear_units(self) -> None:
        """Drop the cached `units` after the buffers were written to."""
        self._units = None

    @property
    def units(self) -> tuple[float, float]:
        """Shift and scale of the output, in rewards."""
        if self._units is None:
            # Read in every pass; they change by `rescale` and by loading alone.
            self._units = float(self.get_buffer("shift")), float(self.get_buffer("scale"))
        return self._units

    @property
    def rescaled(self) -> bool:
        """Whether shift and scale are other than 0 and 1."""
        return self.units != (0.0, 1.0)

    def forward(self, features: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1"]:
        """Values, in rewards."""
        normalized = super().forward(features)
        if not self.rescaled:
            return normalized
        shift, scale = self.units
        values = normalized * scale + shift
        if values.requires_grad:
            values.register_hook(lambda gradient: gradient / scale**2)
        return values

    @torch.no_grad()
    def rescale(self, mean: float, std: float, *, learned: bool = False) -> None:
        """Set shift and scale; a critic that has learned keeps its values (PopArt, proposition 1).

        Args:
            mean: Mean of the returns.
            std: Their standard deviation, above 0.
            learned: Whether the critic has been trained without being rescaled before.
        """
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        if self.rescaled or learned:
            self.weight.mul_(scale / std)
            self.bias.copy_((self.bias * scale + shift - mean) / std)
        shift.fill_(mean)
        scale.fill_(std)
        self.clear_units()

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """An ordinary layer of the same output."""
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features)
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        layer.weight.copy_(self.weight * scale)
        layer.bias.copy_(self.bias * scale + shift)
        return layer


_KEPT = ("count", "first", "second", "rollouts", "mean", "square")
"""The attributes of `DiscountedReturns` that outlast an episode."""


class DiscountedReturns:
    """Running mean and standard deviation of discounted sums of rewards, as in SB3's VecNormalize.

    Args:
        n_envs: Number of parallel environments.
        gamma: Discount, in [0, 1).
        initial: Mean and standard deviation of an earlier training.
    """

    def __init__(
        self, n_envs: int, gamma: float, initial: tuple[float, float] | None = None
    ) -> None:
        self.gamma = gamma
        self.sums = np.zeros(n_envs)
        self.count, self.first, self.second = 0, 0.0, 0.0
        self.rollouts, self.mean, self.square = 0, 0.0, 0.0
        if initial is not None:
            mean, std = initial
            self.rollouts, self.mean, self.square = (
                math.ceil(1 / NEWEST_SHARE),
                mean,
                mean**2 + std**2,
            )

    def add(self, rewards: Float[np.ndarray, " envs"], dones: Bool[np.ndarray, " envs"]) -> None:
        """Count one step of all environments."""
        self.sums = self.sums * self.gamma + rewards
        self.count += 1
        self.first += float(np.add.reduce(self.sums)) / len(self.sums)
        self.second += float(np.add.reduce(self.sums * self.sums)) / len(self.sums)
        self.sums[dones] = 0.0

    def state(self) -> list[float]:
        """Everything but the sums of episodes that are going on, as plain numbers."""
        return [float(getattr(self, name)) for name in _KEPT]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from an earlier `state`, with new episodes."""
        for name, value in zip(_KEPT, state, strict=True):
            setattr(self, name, type(getattr(self, name))(value))

    @property
    def ready(self) -> bool:
        """Whether there were enough steps since the last `moments`: sums begin small."""
        return self.count * (1 - self.gamma) >= MIN_HORIZONS or self.count >= MAX_STEPS

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation with the newest steps included; begins a new count.

        Returns:
            Both in rewards; the standard deviation is at least `MIN_RELATIVE_STD` of the mean's
            size, and 0 without rewards.
        """
        self.rollouts += 1
        share = max(1 / self.rollouts, NEWEST_SHARE)
        self.mean += share * (self.first / max(self.count, 1) - self.mean)
        self.square += share * (self.second / max(self.count, 1) - self.square)
        self.count, self.first, self.second = 0, 0.0, 0.0
        std = math.sqrt(max(self.square - self.mean**2, 0.0))
        return self.mean, max(std, MIN_RELATIVE_STD * abs(self.mean))
