"""The target's VecNormalize, undone."""

from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.sources.preprocessing import Observations, Statistics


class Original(nn.Module):
    """Undoes the target's VecNormalize, so that sources see the observations they were trained on.

    Its buffers are called `running_*`, which SB3 copies to target networks. Until a callback sets them it does
    nothing. Observations that VecNormalize clipped come back clipped.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.keys = [key for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)]
        for index, key in enumerate(self.keys):
            self.register_buffer(f"running_mean_{index}", torch.zeros(parts[key].shape or (1,)))
            self.register_buffer(f"running_std_{index}", torch.ones(parts[key].shape or (1,)))

    def learn(self, statistics: Statistics, epsilon: float) -> None:
        """Take over the statistics of the target's VecNormalize as they are now.

        Raises:
            BadConfig: If they are of other observations.
        """
        for index, key in enumerate(self.keys):
            if key in statistics:
                mean, var = statistics[key]
                seen = self.get_buffer(f"running_mean_{index}").shape
                if mean.size != seen.numel():
                    raise BadConfig(
                        f"VecNormalize normalises observations of shape {mean.shape}, and the agent sees {tuple(seen)}; put VecNormalize "
                        "around the wrapper that changes them."
                    )
                self.get_buffer(f"running_mean_{index}").copy_(torch.as_tensor(mean))
                self.get_buffer(f"running_std_{index}").copy_(torch.as_tensor(var + epsilon).sqrt())

    def forward(self, observations: Observations) -> Observations:
        """Observations before the target's VecNormalize."""
        if isinstance(observations, Tensor):
            return self._undone(0, observations) if self.keys else observations
        return {**observations, **{key: self._undone(index, observations[key]) for index, key in enumerate(self.keys)}}

    def _undone(self, index: int, values: Tensor) -> Tensor:
        mean, std = (cast("Tensor", self._buffers[f"running_{what}_{index}"]) for what in ("mean", "std"))
        return torch.addcmul(mean, values, std)
