"""A critic that speaks in units of the returns, so that it need not first grow to their size.

A new critic says about zero. Where sources earn much from the first step on, its weights, which a step of Adam moves by a learning
rate, would take a hundred rollouts to say what states are worth; until then losing all future rewards, as in a fall, costs nothing.
So the mean and the spread of discounted returns are measured, and the critic learns the rest (PopArt: van Hasselt et al., NeurIPS 2016).
"""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

LEAST = 0.1
"""Spread, as a share of the mean's size, below which that of returns is not believed: an even gait hardly varies what it earns."""

FADING = 0.1
"""Share of the newest rollout in the running moments, once there were as many rollouts as that says."""


HORIZONS = 2
"""Steps between two measurements, in units of the discount's `1 / (1 - gamma)`."""

LONG = 2048
"""Steps that are enough in any case."""


class ValueHead(nn.Linear):
    """The last layer of a critic, whose output is scaled and shifted; as it was until that is measured.

    The gradient of a squared error reaches the layer as if values and returns were divided by the scale.

    Args:
        layer: The layer that it takes the place of; its parameters are taken over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self._units: tuple[float, float] | None = None

    newer: ClassVar[tuple[str, ...]] = ("shift", "scale")
    """Beginnings of the names of what agents of version 0.1 may lack; it is then as at the start."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.newer:
            state_dict.setdefault(prefix + name, self.get_buffer(name))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.forget_units()

    def forget_units(self) -> None:
        """Ask the buffers anew, which were written to."""
        self._units = None

    @property
    def units(self) -> tuple[float, float]:
        """Shift and scale of what it says."""
        if self._units is None:
            # Asked in every pass; they change by `measure` and by loading alone.
            self._units = float(self.get_buffer("shift")), float(self.get_buffer("scale"))
        return self._units

    @property
    def measured(self) -> bool:
        """Whether it speaks in units of the returns."""
        return self.units != (0.0, 1.0)

    def forward(self, features: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1"]:
        """Values, in the units of the rewards."""
        said = super().forward(features)
        if not self.measured:
            return said
        shift, scale = self.units
        values = said * scale + shift
        if values.requires_grad:
            values.register_hook(lambda gradient: gradient / scale**2)
        return values

    @torch.no_grad()
    def measure(self, mean: float, std: float, *, learned: bool = False) -> None:
        """Speak in these units from now on; what it says stays the same (PopArt, proposition 1), but for that of a new critic.

        Args:
            mean: Of the returns.
            std: Their spread.
            learned: Whether it has learned anything, though it was not measured before.
        """
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        if self.measured or learned:
            self.weight.mul_(scale / std)
            self.bias.copy_((self.bias * scale + shift - mean) / std)
        shift.fill_(mean)
        scale.fill_(std)
        self._units = None

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """An ordinary layer that says the same."""
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features)
        layer.weight.copy_(self.weight * self.get_buffer("scale"))
        layer.bias.copy_(self.bias * self.get_buffer("scale") + self.get_buffer("shift"))
        return layer


class DiscountedReturns:
    """Running mean and spread of rewards summed up with a discount, as SB3's VecNormalize sums them.

    Args:
        n_envs: How many parallel environments there are.
        gamma: The discount.
        known: Mean and spread as an earlier training left them; none for nothing.
    """

    def __init__(self, n_envs: int, gamma: float, known: tuple[float, float] | None = None) -> None:
        self.gamma = gamma
        self.sums = np.zeros(n_envs)
        self.count, self.first, self.second = 0, 0.0, 0.0
        self.rollouts, self.mean, self.square = 0, 0.0, 0.0
        if known is not None:
            mean, std = known
            self.rollouts, self.mean, self.square = math.ceil(1 / FADING), mean, mean**2 + std**2

    def note(self, rewards: Float[np.ndarray, " envs"], dones: Bool[np.ndarray, " envs"]) -> None:
        """A step of all environments."""
        self.sums = self.sums * self.gamma + rewards
        self.count += 1
        self.first += float(np.add.reduce(self.sums)) / len(self.sums)
        self.second += float(np.add.reduce(self.sums * self.sums)) / len(self.sums)
        self.sums[dones] = 0.0

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen since the last moments: sums that began a moment ago are small."""
        return self.count * (1 - self.gamma) >= HORIZONS or self.count >= LONG

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, when a rollout is over; the latter at least `LEAST` of the mean's size, and 0 without rewards."""
        self.rollouts += 1
        share = max(1 / self.rollouts, FADING)
        self.mean += share * (self.first / max(self.count, 1) - self.mean)
        self.square += share * (self.second / max(self.count, 1) - self.square)
        self.count, self.first, self.second = 0, 0.0, 0.0
        return self.mean, max(math.sqrt(max(self.square - self.mean**2, 0.0)), LEAST * abs(self.mean))
