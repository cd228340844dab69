"""Inverse of the target's VecNormalize, for sources trained on raw observations."""

from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.sources.preprocessing import Observations, Statistics


class Denormalizer(nn.Module):
    """Raw observations from those that the target's VecNormalize normalised.

    The identity until a callback sets its statistics. Values that VecNormalize clipped stay
    clipped. Its buffers are called `running_*`, because SB3 copies buffers of that name to target
    networks.

    Args:
        space: The target's observations.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.keys = [
            key
            for key, part in parts.items()
            if isinstance(part, spaces.Box) and not is_image_space(part)
        ]
        for index, key in enumerate(self.keys):
            self.register_buffer(f"running_mean_{index}", torch.zeros(parts[key].shape or (1,)))
            self.register_buffer(f"running_std_{index}", torch.ones(parts[key].shape or (1,)))

    def set_statistics(self, statistics: Statistics, epsilon: float) -> None:
        """Copy the present statistics of the target's VecNormalize.

        Args:
            statistics: Mean and variance of each part that is normalised.
            epsilon: VecNormalize's, added to the variance.

        Raises:
            BadConfig: If their shape is not that of the observations.
        """
        for index, key in enumerate(self.keys):
            if key not in statistics:
                continue
            mean, var = statistics[key]
            own = self.get_buffer(f"running_mean_{index}")
            if mean.size != own.numel():
                raise BadConfig(
                    f"VecNormalize normalises observations of shape {mean.shape}, and the agent "
                    f"sees {tuple(own.shape)}; put VecNormalize around the wrapper that changes "
                    "them."
                )
            own.copy_(torch.as_tensor(mean))
            self.get_buffer(f"running_std_{index}").copy_(torch.as_tensor(var + epsilon).sqrt())

    def forward(self, observations: Observations) -> Observations:
        """Observations before VecNormalize."""
        if isinstance(observations, Tensor):
            return self._denormalized(0, observations) if self.keys else observations
        raw = {key: self._denormalized(i, observations[key]) for i, key in enumerate(self.keys)}
        return {**observations, **raw}

    def _denormalized(self, index: int, values: Tensor) -> Tensor:
        mean, std = (
            cast("Tensor", self._buffers[f"running_{moment}_{index}"]) for moment in ("mean", "std")
        )
        return torch.addcmul(mean, values, std)
