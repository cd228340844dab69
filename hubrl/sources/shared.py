"""One frozen copy of each source in a process, whoever uses it.

Online and target networks, policy and value, and models trained side by side all borrow the same module. A saved model
names its sources by their cards; when it is built, the cards are looked up here, and what is not here is made empty
and filled by `load_state_dict`.
"""

import copy
import json
from weakref import WeakValueDictionary

import torch

from hubrl.formats.cards import SourceCard
from hubrl.sources.source import Source

_Key = tuple[str, str, torch.dtype]

_offered: dict[str, Source] = {}
_shared: WeakValueDictionary[_Key, Source] = WeakValueDictionary()


def offer(source: Source) -> None:
    """Keep a source's weights for the models that will be built from its card; held until the process ends."""
    _offered[_identity(source.card)] = source


def borrow(card: SourceCard) -> Source:
    """The frozen source of a card, on the CPU, shared with everyone who borrows it.

    Its weights are there if the source was offered or a model with it is alive; otherwise it is empty and refuses to
    speak until they are loaded.
    """
    offered = _offered.get(_identity(card))
    if offered is not None and offered.frozen:
        return _on(offered, torch.empty(0))
    key = _key(card, torch.empty(0))
    shared = _shared.get(key)
    if shared is None:
        shared = Source.from_card(card, _offered_weights(card))
        _shared[key] = shared
    return shared


def own(card: SourceCard) -> Source:
    """A copy of a card's source for the caller alone, to be trained; empty if it was not offered."""
    return Source.from_card(card, _offered_weights(card), frozen=False)


def on(source: Source, like: torch.Tensor) -> Source:
    """The shared copy of a frozen source on the device and in the precision of a tensor."""
    return _on(source, like)


def _offered_weights(card: SourceCard) -> dict[str, torch.Tensor] | None:
    offered = _offered.get(_identity(card))
    return None if offered is None or not offered.arrived else offered.tensors()


def _on(source: Source, like: torch.Tensor) -> Source:
    own = next((tensor for tensor in source.state_dict().values() if tensor.is_floating_point()), like)
    if own.device == like.device and own.dtype == like.dtype:
        _shared.setdefault(_key(source.card, like), source)
        return source
    key = _key(source.card, like)
    moved = _shared.get(key)
    if moved is None or moved.arrived != source.arrived:
        moved = copy.deepcopy(source).to(like.device)
        # Not to a precision it has already: statistics are held in float64 beside weights in float32.
        moved = moved if own.dtype == like.dtype else moved.to(like.dtype)
        _shared[key] = moved
    return moved


def _identity(card: SourceCard) -> str:
    return json.dumps(card.to_dict(), sort_keys=True)


def _key(card: SourceCard, like: torch.Tensor) -> _Key:
    return _identity(card), str(like.device), like.dtype
