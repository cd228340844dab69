"""Many small parameters that autograd, clipping and the optimizer take for one.

A parameter of a few dozen numbers costs them what calling an operation costs, which is as much as what a network of such parameters
computes. So while an update lasts those whose gradients are made by hand, together, can lie in one piece of memory.
"""

from collections.abc import Mapping, Sequence

import torch._utils
from torch import Tensor, nn


class Pack:
    """Parameters in one piece of memory; they stay where they are in their modules, and are read there as ever.

    Args:
        members: They must not be in another pack.
    """

    def __init__(self, members: Sequence[nn.Parameter]) -> None:
        self.members = list(members)
        self.whole = nn.Parameter(joined([member.detach() for member in members]))
        """All of them in a row, which is what has a gradient and is stepped."""
        for member, part in zip(self.members, self.split(self.whole.detach()), strict=True):
            member.data = part
            member.pack = self  # type: ignore[attr-defined]

    def block(self, members: Sequence[Tensor]) -> Tensor | None:
        """Some members that are alike but for their length, one below the other in the whole's memory; none if they do not lie so."""
        place = {id(member): index for index, member in enumerate(self.members)}
        places = [place.get(id(member), -1) for member in members]
        if places[0] < 0 or places != list(range(places[0], places[0] + len(members))):
            return None
        first = sum(member.numel() for member in self.members[: places[0]])
        block = self.whole.detach()[first : first + sum(member.numel() for member in members)]
        return block.view(-1, *members[0].shape[1:])

    def split(self, whole: Tensor) -> list[Tensor]:
        """What belongs to each of them, in its shape, of something of the whole's."""
        parts = whole.split([member.numel() for member in self.members])
        return [part.view_as(member) for part, member in zip(parts, self.members, strict=True)]

    def release(self) -> None:
        """Give each of them memory of its own again, and its part of the last gradient."""
        gradients = [None] * len(self.members) if self.whole.grad is None else self.split(self.whole.grad)
        for member, gradient in zip(self.members, gradients, strict=True):
            member.data = member.detach().clone()
            member.grad = gradient
            del member.pack  # type: ignore[attr-defined]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors in a row."""
    flat: Tensor = torch._utils._flatten_dense_tensors(list(parts))
    return flat


class Handed:
    """What an operation with gradients by hand gives autograd for its parameters: packs where there are any, else each by itself.

    Args:
        parameters: All of the operation's. Of a pack's members all get a gradient, or none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        packs: list[Pack | None] = [getattr(parameter, "pack", None) for parameter in parameters]
        self.packs = list({id(pack): pack for pack in packs if pack is not None}.values())
        self.singles = [parameter for parameter, pack in zip(parameters, packs, strict=True) if pack is None]

    @property
    def inputs(self) -> list[Tensor]:
        """What it takes, so that autograd knows of it."""
        return [*(pack.whole for pack in self.packs), *self.singles]

    def gradients(self, each: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of what it takes, from those of all parameters."""
        if not self.packs:
            return list(each)
        of = {id(parameter): gradient for parameter, gradient in zip(self.parameters, each, strict=True)}
        return [*(_of_whole(pack, of) for pack in self.packs), *(of[id(single)] for single in self.singles)]


def _of_whole(pack: Pack, of: Mapping[int, Tensor | None]) -> Tensor | None:
    gradients = [gradient for member in pack.members if (gradient := of[id(member)]) is not None]
    assert len(gradients) in (0, len(pack.members))
    return joined(gradients) if gradients else None
