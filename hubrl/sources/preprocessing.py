"""From the target's observations to what a source's network reads: selecting, resizing, normalising."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadFile, SpaceMismatch
from hubrl.formats.cards import Crop, Frames, Key, Keys, Normalisation, Resize, Select, Step
from hubrl.formats.spaces import describe

Observations = Tensor | dict[str, Tensor]
"""Observations as SB3 preprocesses them: floats, images divided by 255, discrete ones one-hot; a dict for a Dict space."""

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]
"""Mean and variance of VecNormalize, by key of a Dict observation; one empty key otherwise."""


def preprocessed(observations: Observations, steps: tuple[Step, ...]) -> Observations:
    """Observations of the target as a source's network reads them.

    Raises:
        ValueError: If they have not what a step asks for.
    """
    for step in steps:
        if isinstance(step, Key):
            if not isinstance(observations, dict) or step.name not in observations:
                raise ValueError(f"no part {step.name!r}")
            observations = observations[step.name]
            continue
        if isinstance(step, Keys):
            if not isinstance(observations, dict) or not set(step.names.values()) <= set(observations):
                raise ValueError(f"not all of the parts {sorted(step.names.values())}")
            observations = {own: observations[name] for own, name in step.names.items()}
            continue
        if isinstance(observations, dict):
            raise ValueError("a Dict observation")  # noqa: TRY004 - a mismatch of spaces, as the other steps'
        observations = _done(observations, step)
    return observations


def _done(images: Float[Tensor, " batch *obs"], step: Step) -> Float[Tensor, " batch *read"]:
    match step:
        case Select():
            return images[:, list(step.indices)]
        case Frames():
            if images.shape[1] < step.last:
                raise ValueError(f"{step.last} frames of {images.shape[1]}")
            return images[:, -step.last :]
        case Crop():
            if images.shape[2] < step.bottom:
                raise ValueError(f"row {step.bottom} of {images.shape[2]}")
            return images[:, :, step.top : step.bottom]
        case Resize():
            return functional.interpolate(images, (step.height, step.width), mode="bilinear", antialias=True)
        case _:
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            return (images - low) / (high - low).clamp_min(1e-6)


class Normaliser(nn.Module):
    """What VecNormalize did when the source was trained, with its statistics held fixed."""

    def __init__(self, space: spaces.Space[Any], how: Normalisation, statistics: Statistics | None) -> None:
        super().__init__()
        self.how = how
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for index, key in enumerate(how.keys):
            part = parts.get(key)
            if part is None:
                raise BadFile(f"Statistics are given for {key!r}, the source observes {describe(space)}.")
            shape = tuple(part.shape or ())
            mean, var = (np.zeros(shape), np.ones(shape)) if statistics is None else statistics[key]
            if np.shape(mean) != shape:
                raise SpaceMismatch(f"The statistics are of shape {np.shape(mean)}, the source observes {describe(part)}.")
            # Twice float32's digits: SB3 normalises in float64.
            self.register_buffer(f"mean_{index}", torch.as_tensor(np.asarray(mean), dtype=torch.float64))
            self.register_buffer(f"var_{index}", torch.as_tensor(np.asarray(var), dtype=torch.float64))

    def forward(self, observations: Observations) -> Observations:
        """Observations as the source was trained on them."""
        if isinstance(observations, Tensor):
            return self._normalised(0, observations)
        done = {key: self._normalised(index, observations[key]) for index, key in enumerate(self.how.keys)}
        return {**observations, **done}

    def _normalised(self, index: int, values: Tensor) -> Tensor:
        mean, var = self.get_buffer(f"mean_{index}"), self.get_buffer(f"var_{index}")
        normal = (values - mean) / (var + self.how.epsilon).sqrt()
        return normal.clamp(-self.how.clip, self.how.clip).float()
