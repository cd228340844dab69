"""One frozen copy of each source per process, device and precision.

Online and target networks, policy and value, and models trained side by side share the module. A
saved model names its sources by their cards; the cards are looked up here when it is built, and a
source that is not found is made without weights, which `load_state_dict` brings.
"""

import copy
import json
from weakref import WeakValueDictionary

import torch

from hubrl.formats.cards import SourceCard
from hubrl.sources.source import Source

_Key = tuple[str, str, torch.dtype]

_registered: dict[str, Source] = {}
_shared: WeakValueDictionary[_Key, Source] = WeakValueDictionary()


def register(source: Source) -> None:
    """Keep a source until the process ends, for models that will be built from its card."""
    _registered[_identity(source.card)] = source


def get(card: SourceCard) -> Source:
    """The shared frozen source of a card, on the CPU.

    It has weights if the source is registered or a model with it is alive; otherwise it raises
    until they are loaded.
    """
    registered, like = _registered.get(_identity(card)), torch.empty(0)
    if registered is not None and registered.frozen:
        return on_device(registered, like)
    shared = _shared.get(_key(card, like))
    if shared is None:
        shared = Source.from_card(card, _registered_weights(card))
        _shared[_key(card, like)] = shared
    return shared


def make_trainable(card: SourceCard) -> Source:
    """A copy of a card's source for one model, to be trained; without weights if not registered."""
    return Source.from_card(card, _registered_weights(card), frozen=False)


def on_device(source: Source, like: torch.Tensor) -> Source:
    """The shared copy of a frozen source on the device and in the precision of a tensor."""
    tensors = source.state_dict().values()
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), like)
    key = _key(source.card, like)
    if own.device == like.device and own.dtype == like.dtype:
        _shared.setdefault(key, source)
        return source
    moved = _shared.get(key)
    if moved is None or moved.weights_loaded != source.weights_loaded:
        moved = copy.deepcopy(source).to(like.device)
        # Statistics stay float64 beside float32 weights, unless the precision itself changes.
        moved = moved if own.dtype == like.dtype else moved.to(like.dtype)
        _shared[key] = moved
    return moved


def _registered_weights(card: SourceCard) -> dict[str, torch.Tensor] | None:
    source = _registered.get(_identity(card))
    return None if source is None or not source.weights_loaded else source.tensors()


def _identity(card: SourceCard) -> str:
    return json.dumps(card.to_dict(), sort_keys=True)


def _key(card: SourceCard, like: torch.Tensor) -> _Key:
    return _identity(card), str(like.device), like.dtype
