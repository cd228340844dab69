"""From a task's numpy observations to the batches of tensors that SB3's policies preprocess."""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    is_image_space,
    maybe_transpose,
    preprocess_obs,
)
from torch import Tensor

from hubrl.errors import BadConfig, NotFinite, SpaceMismatch
from hubrl.formats.cards import Key, Keys, SourceCard
from hubrl.formats.spaces import describe, fits
from hubrl.sources.preprocessing import Observations, apply_steps

NumpyObservation = np.ndarray | dict[str, np.ndarray]


def to_batch(
    observation: NumpyObservation,
    card: SourceCard,
    device: torch.device | None,
) -> tuple[Observations, bool]:
    """One observation or a batch, as SB3 preprocesses it but before the card's own steps.

    Args:
        observation: As the task returns it; images channel last or first.
        card: Card of the source that reads it.
        device: Device of the result; None for the CPU.

    Returns:
        Tensors with a leading batch axis, and whether the observation had one already.

    Raises:
        SpaceMismatch: If the source cannot read such an observation.
    """
    parts = _parts_read(card)
    if parts is None:
        return _array_to_batch(np.asarray(observation), card, device)
    if not isinstance(observation, dict) or not set(parts) <= set(observation):
        given = f"a dict of {sorted(observation)}" if isinstance(observation, dict) else "an array"
        read = (
            f"parts {sorted(parts)} of a Dict"
            if card.preprocessing
            else describe(card.observations)
        )
        raise SpaceMismatch(f"Source {card.name!r} reads {read}, it was given {given}.")
    found = {
        key: _rows(np.asarray(observation[key]), space, card, device)
        for key, space in parts.items()
    }
    batch = {key: _preprocess(rows, parts[key], card) for key, (rows, _) in found.items()}
    return batch, all(batched for _, batched in found.values())


def check_no_nan(observation: NumpyObservation, reader: str) -> None:
    """Refuse an observation with NaN, for which a network computes NaN and may act nonetheless.

    Args:
        observation: One observation, or a batch.
        reader: The agent, as the subject of the message.

    Raises:
        NotFinite: If there is one.
    """
    parts = observation.values() if isinstance(observation, dict) else [observation]
    for array in map(np.asarray, parts):
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise NotFinite(
                f"{reader} was given an observation with NaN; expected numbers, so replace it "
                "before the agent acts."
            )


def fits_preprocessing(observations: Observations, card: SourceCard) -> bool:
    """Whether the card's steps turn such observations into inputs of the source's networks."""
    try:
        rows = apply_steps(observations, card.preprocessing)
    except (RuntimeError, IndexError, ValueError):
        return False
    space = card.observations
    if not isinstance(rows, dict):
        return tuple(rows.shape[1:]) == space.shape
    own = space.spaces if isinstance(space, spaces.Dict) else {}
    return set(rows) == set(own) and all(
        rows[key].shape[1:] == _zeros(part).shape[1:] for key, part in own.items()
    )


def accepts(card: SourceCard, space: spaces.Space[Any]) -> bool:
    """Whether a source can read observations of a target's space, after its card's steps."""
    if not card.preprocessing:
        return fits(space, card.observations)
    if not isinstance(space, spaces.Box | spaces.Dict):
        return False
    return fits_preprocessing(zero_observations(space), card)


def divides_images(cards: Iterable[SourceCard]) -> bool:
    """Whether SB3 has to divide images by 255 for these sources; True if none reads images.

    Raises:
        SpaceMismatch: If some of them read images from 0 to 1 and some from 0 to 255.
    """
    reading = [card for card in cards if _reads_images(card.observations)]
    scales = {_reads_divided(card) for card in reading}
    if len(scales) > 1 and any(is_image_space(card.observations) for card in reading):
        raise SpaceMismatch(
            "Some sources read images from 0 to 1 and some from 0 to 255 (normalize_images=False, "
            "VecNormalize over images, or images of floats); make a hub of either."
        )
    return scales != {False}


def check_division(cards: Iterable[SourceCard], space: spaces.Space[Any], given: bool) -> None:
    """Refuse a policy's `normalize_images` that is not the sources'.

    Raises:
        BadConfig: If the target observes uint8 images on another scale than sources read.
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if any(is_image_space(part) for part in parts) and divides_images(cards) != given:
        scale = "0 to 255" if given else "0 to 1"
        raise BadConfig(
            f"normalize_images={given} was given, and the sources read images from {scale}; leave "
            "it out."
        )


def _reads_images(space: spaces.Space[Any]) -> bool:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(len(part.shape or ()) == 3 for part in parts)


def _reads_divided(card: SourceCard) -> bool:
    """Whether a source's images were divided by 255, or reached from 0 to 1 anyway.

    SB3 divides uint8 images alone: not those of floats, nor those that VecNormalize normalised.
    """
    space = card.observations
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and not is_image_space(space):
        return float(space.high.max()) <= 1
    return card.normalize_images


def image_scale_problem(card: SourceCard, space: spaces.Space[Any]) -> str | None:
    """Reason why a target's images reach a source on another scale than its own did, if they do.

    Args:
        card: Card of the source.
        space: Observations of the target, whose images SB3 divides by 255 if they are uint8 and
            `divides_images` is true for the hub.
    """
    own = card.observations
    if card.preprocessing:
        return None
    parts = [(own, space)]
    if isinstance(own, spaces.Dict) and isinstance(space, spaces.Dict):
        parts = [(part, space[key]) for key, part in own.spaces.items()]
    for here, there in parts:
        if isinstance(here, spaces.Box) and isinstance(there, spaces.Box) and len(here.shape) == 3:
            in_dict = isinstance(own, spaces.Dict)
            problem = _pair_problem(here, there, card.normalize_images, in_dict=in_dict)
            if problem is not None:
                return problem
    return None


def _pair_problem(
    here: spaces.Box, there: spaces.Box, normalize: bool, *, in_dict: bool
) -> str | None:
    """As `image_scale_problem`, for one image of a source (here) and of the target (there)."""
    own_bytes, most = is_image_space(here), float(there.high.max())
    if not is_image_space(there):
        if own_bytes and normalize and most > 1:
            return (
                "learned from uint8 images, which SB3 divides by 255; those of the target are of "
                "another dtype and are not divided. Let the target observe uint8."
            )
        raw = own_bytes and not normalize
        if most <= 1 and (raw or (float(here.high.max()) == 255 and not own_bytes)):
            return (
                "reads images from 0 to 255, and those of the target go from 0 to 1. Let the "
                "target observe uint8."
            )
    elif in_dict and normalize and not own_bytes and float(here.high.max()) > 1:
        return (
            "learned from images in a Dict that were not divided by 255, and SB3 divides those of "
            "the target, which are uint8. Put the target under VecNormalize, or let it observe "
            "floats."
        )
    return None


def zero_observations(space: spaces.Space[Any]) -> Observations:
    """A batch of one observation of zeros, preprocessed."""
    if isinstance(space, spaces.Dict):
        return {key: _zeros(part) for key, part in space.spaces.items()}
    return _zeros(space)


def _zeros(space: spaces.Space[Any]) -> Tensor:
    has_shape = isinstance(space, spaces.Box | spaces.MultiBinary)
    return (
        torch.zeros(1, *(space.shape or ()))
        if has_shape
        else torch.zeros(1, get_flattened_obs_dim(space))
    )


def _parts_read(card: SourceCard) -> dict[str, spaces.Space[Any]] | None:
    """Spaces of the parts of a target's Dict observation that are read; None for an array."""
    first, space = next(iter(card.preprocessing), None), card.observations
    if isinstance(first, Key):
        return {first.name: space}
    if not isinstance(space, spaces.Dict):
        return None
    names = first.names if isinstance(first, Keys) else {key: key for key in space.spaces}
    return {names[key]: part for key, part in space.spaces.items()}


def _array_to_batch(
    array: np.ndarray, card: SourceCard, device: torch.device | None
) -> tuple[Tensor, bool]:
    if not card.preprocessing:
        rows, batched = _rows(array, card.observations, card, device)
        return _preprocess(rows, card.observations, card), batched
    # The target's space is not known: the card's steps determine whether images are channel last.
    batched = array.ndim > len(card.observations.shape or ())
    raw = array if batched else array[None]
    turned = [raw, np.moveaxis(raw, -1, 1)] if raw.ndim == 4 else [raw]
    fitting = [each for each in turned if fits_preprocessing(torch.zeros(1, *each.shape[1:]), card)]
    if not fitting:
        raise SpaceMismatch(
            f"Source {card.name!r} cannot preprocess an observation of shape {array.shape} "
            f"to {describe(card.observations)}."
        )
    tensor = torch.as_tensor(fitting[0].copy(), device=device)
    # SB3 divides images alone; bytes without rows and columns (Atari's RAM) stay as they are.
    divided = tensor.dtype == torch.uint8 and tensor.ndim == 4 and _reads_divided(card)
    return tensor.float() / 255 if divided else tensor.float(), batched


def _rows(
    array: np.ndarray, space: spaces.Space[Any], card: SourceCard, device: torch.device | None
) -> tuple[Tensor, bool]:
    """Rows of one part of the observation, images channel first; whether it was a batch."""
    shape = tuple(space.shape or ())
    if array.ndim - len(shape) in (0, 1):
        array = maybe_transpose(array, space)
    batched = array.ndim > len(shape)
    rows = array if batched else array[None]
    if not card.preprocessing and rows.shape[1:] != shape:
        raise SpaceMismatch(
            f"Source {card.name!r} reads {describe(space)}, "
            f"it was given an observation of shape {array.shape}."
        )
    _check_numbers(rows, space, card)
    return torch.as_tensor(rows, device=device), batched


def _check_numbers(rows: np.ndarray, space: spaces.Space[Any], card: SourceCard) -> None:
    """Refuse observations that are no numbers, or codes that a discrete space does not have."""
    if rows.dtype.kind not in "fiub":
        raise SpaceMismatch(
            f"Source {card.name!r} reads {describe(space)}, it was given an observation of dtype "
            f"{rows.dtype}; expected numbers."
        )
    discrete = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    most = space.nvec if isinstance(space, spaces.MultiDiscrete) else getattr(space, "n", 0)
    if discrete and bool(((rows < 0) | (rows >= most)).any()):
        raise SpaceMismatch(
            f"Source {card.name!r} reads {describe(space)}, it was given {rows.min()} to "
            f"{rows.max()}; expected codes from 0, as SB3 counts them."
        )


def _preprocess(rows: Tensor, space: spaces.Space[Any], card: SourceCard) -> Tensor:
    return cast("Tensor", preprocess_obs(rows, space, card.normalize_images))
