"""From a target's observations to a source's network inputs: select, crop, resize, normalise."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadFile, SpaceMismatch
from hubrl.formats.cards import (
    Constants,
    Crop,
    Frames,
    Key,
    Keys,
    Normalisation,
    Resize,
    Select,
    Step,
)
from hubrl.formats.spaces import describe

Observations = Tensor | dict[str, Tensor]
"""A batch as SB3 preprocesses it: floats, images divided by 255, one-hot codes; a dict for Dict."""

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]
"""Mean and variance of VecNormalize, by key of a Dict observation; one empty key otherwise."""


def apply_steps(observations: Observations, steps: tuple[Step, ...]) -> Observations:
    """Observations after a card's preprocessing steps.

    Raises:
        ValueError: If a step does not fit the observations.
    """
    for step in steps:
        match step:
            case Key() | Keys():
                observations = _select_parts(observations, step)
            case _ if isinstance(observations, dict):
                raise ValueError("a Dict observation")
            case _:
                observations = _apply_step(observations, step)
    return observations


def _select_parts(observations: Observations, step: Key | Keys) -> Observations:
    wanted = {step.name} if isinstance(step, Key) else set(step.names.values())
    if not isinstance(observations, dict) or not wanted <= set(observations):
        raise ValueError(f"no parts {sorted(wanted)}")
    if isinstance(step, Key):
        return observations[step.name]
    return {own: observations[name] for own, name in step.names.items()}


def _apply_step(images: Float[Tensor, " batch *obs"], step: Step) -> Float[Tensor, " batch *read"]:
    match step:
        case Select():
            return images[:, list(step.indices)]
        case Constants():
            return _with_constants(images, step.values)
        case Frames():
            if images.shape[1] < step.last:
                raise ValueError(f"{step.last} frames of {images.shape[1]}")
            return images[:, -step.last :]
        case Crop():
            if images.shape[2] < step.bottom:
                raise ValueError(f"row {step.bottom} of {images.shape[2]}")
            return images[:, :, step.top : step.bottom]
        case Resize():
            size = (step.height, step.width)
            return functional.interpolate(images, size, mode="bilinear", antialias=True)
        case _:
            low = images.amin((1, 2, 3), keepdim=True)
            high = images.amax((1, 2, 3), keepdim=True)
            return (images - low) / (high - low).clamp_min(1e-6)


def _with_constants(
    rows: Float[Tensor, "batch entries"], values: dict[int, float]
) -> Float[Tensor, "batch read"]:
    """Rows with constants at their places, and the row's own entries in order at the others."""
    width = rows.shape[1] + len(values)
    if max(values, default=-1) >= width:
        raise ValueError(f"constant {max(values)} of {width} entries")
    read = rows.new_empty(len(rows), width)
    read[:, [place for place in range(width) if place not in values]] = rows
    read[:, list(values)] = rows.new_tensor(list(values.values()))
    return read


class Normaliser(nn.Module):
    """VecNormalize with the statistics of the source's training, held fixed.

    Args:
        space: The source's observations.
        settings: Keys, clip and epsilon from the card.
        statistics: Mean and variance; zeros and ones until weights are loaded.

    Raises:
        BadFile: If a key is not in the space.
        SpaceMismatch: If the statistics have another shape than the space.
    """

    def __init__(
        self, space: spaces.Space[Any], settings: Normalisation, statistics: Statistics | None
    ) -> None:
        super().__init__()
        self.settings = settings
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for index, key in enumerate(settings.keys):
            part = parts.get(key)
            if part is None:
                raise BadFile(
                    f"Statistics are given for {key!r}, the source observes {describe(space)}."
                )
            shape = tuple(part.shape or ())
            default = np.zeros(shape), np.ones(shape)
            mean, var = default if statistics is None else statistics[key]
            if np.shape(mean) != shape:
                raise SpaceMismatch(
                    f"The statistics are of shape {np.shape(mean)}, "
                    f"the source observes {describe(part)}."
                )
            # SB3 normalises in float64.
            for name, values in (("mean", mean), ("var", var)):
                exact = torch.as_tensor(np.asarray(values), dtype=torch.float64)
                self.register_buffer(f"{name}_{index}", exact)

    def forward(self, observations: Observations) -> Observations:
        """Observations with the mean and variance of the source's training, in float32."""
        if isinstance(observations, Tensor):
            return self._normalise(0, observations)
        return {
            **observations,
            **{
                key: self._normalise(index, observations[key])
                for index, key in enumerate(self.settings.keys)
            },
        }

    def moments(self, index: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (epsilon included) of a key, in float64 and its shape."""
        variance = self.get_buffer(f"var_{index}") + self.settings.epsilon
        return self.get_buffer(f"mean_{index}"), variance.sqrt()

    def _normalise(self, index: int, values: Tensor) -> Tensor:
        mean, std = self.moments(index)
        return ((values - mean) / std).clamp(-self.settings.clip, self.settings.clip).float()
