"""A source's networks, rebuilt from its card or by a registered builder."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gymnasium import spaces
from torch import nn

from hubrl.errors import BadConfig, BadFile, unknown
from hubrl.formats.cards import ActionHead, Declared, SourceCard
from hubrl.sources.heads import ActionValue, CategoricalAction, DeterministicAction, GaussianAction, GreedyAction, GreedyValue, StateValue
from hubrl.sources.trunks import Encoder


class Networks(NamedTuple):
    """The parts of a source that hold weights."""

    encoder: nn.Module
    """From observations to features `(batch, width)`; `encoder.width` is their width."""
    action: nn.Module | None = None
    """From features to speech at the level of outputs `(batch, outputs)`."""
    value: nn.Module | None = None
    """Called with observations, trunk features and action; returns `(batch,)`."""


Builder = Callable[..., Networks]
"""Makes the networks of a card: `builder(card, **kwargs)`."""

_builders: dict[str, Builder] = {}


def register_network(name: str, builder: Builder) -> None:
    """Make `builder` known under `name`, so that cards may name it.

    This is the trusted way in for networks that hubrl cannot declare: a card from a file can only name what the
    user's own program registered, never a module or a function of its choice.

    Args:
        name: The name cards use.
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
        BadFile: If the card names a builder that this process has not registered, or describes no network.
    """
    network = card.network
    if not isinstance(network, Declared) and network.builder not in _builders:
        sentence = unknown("network builder", network.builder, _builders)
        raise BadFile(f"Source {card.name!r} needs a registered network. {sentence} Call hubrl.register_network first.")
    try:
        return _declared(card, network) if isinstance(network, Declared) else _builders[network.builder](card, **network.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, MemoryError) as error:
        raise BadFile(f"The networks that the card of source {card.name!r} describes cannot be built ({error}).") from error


def _declared(card: SourceCard, network: Declared) -> Networks:
    encoder = Encoder(card.observations, network)
    if network.action is None:
        return Networks(encoder)
    actions = card.actions
    if actions is None:
        raise BadFile(f"Source {card.name!r} has an action head and no action space.")
    action = _action_head(encoder.width, actions, network.action)
    if isinstance(action, GreedyAction):
        return Networks(encoder, action, GreedyValue())
    if network.value is None:
        return Networks(encoder, action)
    if network.value.kind == "state":
        return Networks(encoder, action, StateValue(card.observations, network, encoder.trunks.width))
    assert isinstance(actions, spaces.Box)
    return Networks(encoder, action, ActionValue(card.observations, network, encoder.trunks.width, actions))


def _action_head(width: int, space: spaces.Space[Any], head: ActionHead) -> nn.Module:
    match head.kind, space:
        case "gaussian" | "squashed-gaussian", spaces.Box():
            return GaussianAction(width, space, head)
        case "deterministic", spaces.Box():
            return DeterministicAction(width, space)
        case "q-values" | "quantiles", spaces.Discrete():
            return GreedyAction(width, space, head.quantiles)
        case "categorical", spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return CategoricalAction(width, space)
        case _:
            raise BadFile(f"A {head.kind} head cannot act in {space}.")
