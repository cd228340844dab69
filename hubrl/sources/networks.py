"""A source's networks, rebuilt from its card or by a registered builder."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gymnasium import spaces
from torch import nn

from hubrl.errors import BadConfig, BadFile, unknown
from hubrl.formats.cards import ActionHead, Declared, SourceCard
from hubrl.sources.heads import (
    ActionValue,
    CategoricalAction,
    DeterministicAction,
    GaussianAction,
    GreedyAction,
    GreedyValue,
    StateValue,
)
from hubrl.sources.trunks import Encoder


class Networks(NamedTuple):
    """The parts of a source that hold weights."""

    encoder: nn.Module
    """From observations to features `(batch, width)`; `encoder.width` is their width."""
    action: nn.Module | None = None
    """From features to action parameters `(batch, outputs)`."""
    value: nn.Module | None = None
    """From observations, trunk features and action to values `(batch,)`."""


Builder = Callable[..., Networks]
"""Function that makes the networks of a card: `builder(card, **kwargs)`."""

_builders: dict[str, Builder] = {}


def register_network(name: str, builder: Builder) -> None:
    """Make `builder` known under `name`, so that cards may name it.

    The trusted way in for networks that hubrl cannot declare: a card from a file can name what the
    user's own program registered, never a module or a function of its choice.

    Args:
        name: The name that cards use.
        builder: Called as `builder(card, **kwargs)` with the card and its plain keyword arguments.

    Raises:
        BadConfig: If another builder has the name.
    """
    if _builders.get(name, builder) is not builder:
        raise BadConfig(f"Another network is registered as {name!r}; choose another name.")
    _builders[name] = builder


def build(card: SourceCard) -> Networks:
    """The networks that a card describes, with weights yet to be loaded.

    Raises:
        BadFile: If the card names a builder that is not registered, or describes no network.
    """
    network = card.network
    if not isinstance(network, Declared) and network.builder not in _builders:
        raise BadFile(
            f"Source {card.name!r} needs a registered network. "
            f"{unknown('network builder', network.builder, _builders)} "
            "Call hubrl.register_network first."
        )
    try:
        if isinstance(network, Declared):
            return _build_declared(card, network)
        return _builders[network.builder](card, **network.kwargs)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, MemoryError) as error:
        raise BadFile(
            f"The networks that the card of source {card.name!r} describes "
            f"cannot be built ({error})."
        ) from error


def _build_declared(card: SourceCard, network: Declared) -> Networks:
    encoder, actions = Encoder(card.observations, network), card.actions
    if network.action is None:
        return Networks(encoder)
    if actions is None:
        raise BadFile(f"Source {card.name!r} has an action head and no action space.")
    action = _action_head(encoder.width, actions, network.action)
    if isinstance(action, GreedyAction):
        return Networks(encoder, action, GreedyValue())
    if network.value is None:
        return Networks(encoder, action)
    width = encoder.trunks.width
    if network.value.kind == "state":
        return Networks(encoder, action, StateValue(card.observations, network, width))
    assert isinstance(actions, spaces.Box)
    return Networks(encoder, action, ActionValue(card.observations, network, width, actions))


def _action_head(width: int, space: spaces.Space[Any], head: ActionHead) -> nn.Module:
    match head.kind, space:
        case "gaussian" | "squashed-gaussian", spaces.Box():
            return GaussianAction(width, space, head)
        case "deterministic", spaces.Box():
            return DeterministicAction(width, space)
        case "q-values" | "quantiles" | "atoms", spaces.Discrete():
            return GreedyAction(width, space, head)
        case "categorical", spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return CategoricalAction(width, space)
        case _:
            raise BadFile(f"A {head.kind} head cannot act in {space}.")
