"""Size of a card's network against its weights, checked before the network is built."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hubrl.errors import BadFile
from hubrl.formats.cards import Declared, SourceCard, parse_card
from hubrl.formats.limits import Limits
from hubrl.sources import networks

SPARE = 2**20
"""Numbers that a network may hold beyond its weights, as bounds of actions."""


def check_parameters(card: SourceCard, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a card whose network has far more parameters than its weights have numbers.

    Args:
        card: The card; a network made by a registered builder is the user's own and passes.
        tensors: Its weights.

    Raises:
        BadFile: If the network is greater than the weights, or cannot be built.
    """
    there = sum(tensor.numel() for tensor in tensors.values())
    declared = _count_parameters(card)
    if declared > there + SPARE:
        raise BadFile(
            f"The card of source {card.name!r} declares {declared} parameters, its weights "
            f"have {there}."
        )


def check_hub(
    kwargs: Mapping[str, Any], hub: Any, tensors: Mapping[str, Tensor], limits: Limits
) -> None:
    """Refuse a saved hub or policy whose networks are greater than the weights beside it.

    Args:
        kwargs: The policy's keyword arguments.
        hub: The hub as plain data.
        tensors: The weights of policy and sources together.
        limits: Limits on the number of sources and on their spaces.

    Raises:
        BadFile: If they are.
    """
    there = sum(tensor.numel() for tensor in tensors.values())
    layers = _layer_numbers(kwargs.get("net_arch"))
    if layers > there + SPARE:
        raise BadFile(
            f"The agent's net_arch declares {layers} parameters or more, its weights have {there}."
        )
    sources = hub.get("sources") if isinstance(hub, dict) else None
    if not isinstance(sources, list):
        raise BadFile("The agent's hub has no list of sources.")
    if len(sources) > limits.sources:
        raise BadFile(f"The agent's hub has {len(sources)} sources, {limits.sources} are allowed.")
    declared = sum(
        _count_parameters(parse_card(source, "a saved hub", limits)) for source in sources
    )
    if declared > there + SPARE:
        raise BadFile(f"The agent's hub declares {declared} parameters, its weights have {there}.")


def _count_parameters(card: SourceCard) -> int:
    if not isinstance(card.network, Declared) or card.network.hub is not None:
        return 0
    # Tensors of the meta device have a shape and no memory.
    with torch.device("meta"):
        built = networks.build(card)
    modules = [part for part in built if isinstance(part, nn.Module)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _layer_numbers(arch: Any) -> int:
    """Parameters between the layers of a `net_arch`; each of its lists is one stack."""
    if isinstance(arch, dict):
        return max((_layer_numbers(part) for part in arch.values()), default=0)
    if not isinstance(arch, list):
        return 0
    nested = [_layer_numbers(part) for part in arch if isinstance(part, dict)]
    widths = [width for width in arch if isinstance(width, int)]
    between = sum(math.prod(pair) for pair in pairwise(widths))
    return max([between + sum(widths), *nested])
