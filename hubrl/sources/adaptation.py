"""Cards of sources: made from a description, adapted to a target, checked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from pydantic import ValidationError

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.cards import ActionMap, Keys, Normalisation, Registered, SourceCard
from hubrl.formats.schema import first_problem
from hubrl.formats.spaces import describe, space_to_dict
from hubrl.sources.preprocessing import Statistics

MEMORY_BUILDER = "in-memory"
"""Builder of sources made from a user's own modules, which live in their process alone."""

Observes = str | Sequence[int] | Sequence[str] | Mapping[str, str]
"""Parts of a target's observation that a source reads, see `Source.adapted`."""


def make_card(description: dict[str, Any], statistics: Statistics | None) -> SourceCard:
    """A card from its fields, for a source made from a user's own modules.

    Raises:
        BadConfig: If a field is wrong.
    """
    fields = {"name": "custom", "algorithm": "custom", **description}
    builder, kwargs = fields.pop("builder", MEMORY_BUILDER), fields.pop("kwargs", {})
    network = Registered(kind="registered", builder=builder, kwargs=kwargs)
    for end in ("observation_space", "action_space"):
        if isinstance(fields.get(end), spaces.Space):
            fields[end] = space_to_dict(fields[end])
    if statistics is not None:
        fields.setdefault("normalisation", Normalisation(keys=tuple(statistics)))
    try:
        return SourceCard(network=network, **fields)
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise BadConfig(f"A source cannot be described so: {problem}") from error


def adapted_card(
    card: SourceCard,
    *,
    name: str | None,
    observes: Observes | None,
    constants: Mapping[int, float] | None,
    order: Sequence[int] | None,
    signs: Sequence[int] | None,
    meanings: Sequence[str] | None,
) -> SourceCard:
    """A source's card with other observations or actions, see `Source.adapted`.

    Raises:
        BadConfig: If the changes do not fit the card.
    """
    plain = {**card.to_dict(), "name": name or card.name}
    if observes is not None:
        plain["preprocessing"] = [_step(observes), *plain.get("preprocessing", [])]
    if constants:
        _check_constants(card, constants)
        step = {"op": "constants", "values": dict(constants)}
        plain["preprocessing"] = [*plain.get("preprocessing", []), step]
    if order is not None or signs is not None:
        if card.action_map is not None:
            raise BadConfig(
                f"Source {card.name!r} has an action map already; "
                "adapt the source that it was made from."
            )
        plain["action_map"] = {"order": order and list(order), "signs": signs and list(signs)}
    if meanings is not None:
        plain["action_meanings"] = list(meanings)
    try:
        adapted = SourceCard.model_validate(plain)
    except ValidationError as error:
        raise BadConfig(
            f"Source {card.name!r} cannot be adapted so: {first_problem(error)}."
        ) from error
    _check_indices(card, observes, constants or {})
    return adapted


def _check_constants(card: SourceCard, constants: Mapping[int, float]) -> None:
    if card.preprocessing:
        raise BadConfig(
            f"constants was given for source {card.name!r}, which has a preprocessing already; "
            "adapt the source that it was made from."
        )
    shape = card.observations.shape or ()
    if len(shape) != 1 or max(constants) >= shape[0]:
        raise BadConfig(
            f"Source {card.name!r} reads {describe(card.observations)}, and constants names entry "
            f"{max(constants)}; name entries of a flat observation, from 0 on."
        )


def _check_indices(
    card: SourceCard, observes: Observes | None, constants: Mapping[int, float]
) -> None:
    named = 0 if observes is None else len(_step(observes).get("indices", ()))
    width = math.prod(card.observations.shape or ()) - len(constants)
    if named and not card.preprocessing and named != width:
        beside = f" beside {len(constants)} constants" if constants else ""
        raise BadConfig(
            f"Source {card.name!r} reads {width} numbers{beside}, and observes names {named}; "
            "name one for each of them."
        )


def _step(observes: Observes) -> dict[str, Any]:
    """The card's preprocessing step for these parts, as plain data."""
    if isinstance(observes, str):
        return {"op": "key", "name": observes}
    if isinstance(observes, Mapping):
        return {"op": "keys", "names": dict(observes)}
    if observes and all(isinstance(each, str) for each in observes):
        return {"op": "keys", "names": {str(each): str(each) for each in observes}}
    return {"op": "select", "indices": list(observes)}


def mapped_actions(card: SourceCard) -> spaces.Space[Any] | None:
    """The action space of a source: its own head's, after the card's action map.

    Raises:
        SpaceMismatch: If the card's action map or meanings do not fit the head's actions.
    """
    space, mapping = card.actions, card.action_map
    _check_meanings(card)
    if space is None or mapping is None:
        return space
    size = _check_map(card.name, space, mapping)
    if not isinstance(space, spaces.Box):
        return space
    order = list(mapping.order or range(size))
    signs = np.array(mapping.signs or [1] * size)
    ends = np.stack([bound.ravel()[order] * signs for bound in (space.low, space.high)])
    low, high = (end.reshape(space.shape).astype(space.dtype) for end in (ends.min(0), ends.max(0)))
    return spaces.Box(low, high, dtype=space.dtype.type)


def check_steps(card: SourceCard) -> None:
    """Refuse preprocessing that ends in a space without an array.

    Raises:
        SpaceMismatch: If it does.
    """
    space, last = card.observations, card.preprocessing[-1] if card.preprocessing else None
    if last is None or isinstance(space, spaces.Box):
        return
    parts = set(space.spaces) if isinstance(space, spaces.Dict) else None
    if isinstance(last, Keys) and set(last.names) == parts:
        return
    raise SpaceMismatch(
        f"The preprocessing of source {card.name!r} ends in {describe(space)}; expected a Box."
    )


def _check_meanings(card: SourceCard) -> None:
    space, meanings = card.actions, card.action_meanings
    if meanings is None or (isinstance(space, spaces.Discrete) and len(meanings) == space.n):
        return
    raise SpaceMismatch(
        f"The card of source {card.name!r} gives {len(meanings)} meanings to "
        f"{'no actions' if space is None else describe(space)}."
    )


def _check_map(name: str, space: spaces.Space[Any], mapping: ActionMap) -> int:
    """The number of entries or choices that the map has to order."""
    size = 0
    if isinstance(space, spaces.Discrete | spaces.Box):
        size = int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    if mapping.order is not None and sorted(mapping.order) != list(range(size)):
        raise SpaceMismatch(
            f"The action map of source {name!r} orders {list(mapping.order)}, "
            f"{describe(space)} has {size} to order."
        )
    box = isinstance(space, spaces.Box)
    if mapping.signs is not None and (not box or len(mapping.signs) != size):
        raise SpaceMismatch(
            f"The action map of source {name!r} has {len(mapping.signs)} signs "
            f"for {describe(space)}."
        )
    return size
