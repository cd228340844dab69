"""Packs: small parameters that autograd, clipping and the optimizer treat as one.

The time of an operation on a few dozen numbers is that of its call. During an update,
parameters whose gradients are computed manually, and together, can share one piece of memory.
"""

from collections.abc import Mapping, Sequence

import torch._utils
from torch import Tensor, nn


class ParameterPack:
    """Parameters in one piece of memory; their modules read them as before.

    Args:
        members: Parameters of one dtype and device, in no other pack.
    """

    def __init__(self, members: Sequence[nn.Parameter]) -> None:
        self.members = list(members)
        self.flat = nn.Parameter(flatten([member.detach() for member in members]))
        """All members in a row `(numbers,)`: the parameter that has the gradient and is stepped."""
        for member, part in zip(self.members, self.split(self.flat.detach()), strict=True):
            member.data = part
            member.pack = self  # type: ignore[attr-defined]

    def block(self, members: Sequence[Tensor]) -> Tensor | None:
        """Consecutive members of the same trailing shape, stacked along axis 0 without a copy.

        Returns:
            A view `(rows of all members, *trailing)`, or None if they are not consecutive here.
        """
        place = {id(member): index for index, member in enumerate(self.members)}
        first = place.get(id(members[0]), -1)
        places = [place.get(id(member), -1) for member in members]
        if first < 0 or places != list(range(first, first + len(members))):
            return None
        start = sum(member.numel() for member in self.members[:first])
        end = start + sum(member.numel() for member in members)
        return self.flat.detach()[start:end].view(-1, *members[0].shape[1:])

    def split(self, flat: Tensor) -> list[Tensor]:
        """Each member's part, in its shape, of a tensor shaped as `flat`."""
        parts = flat.split([member.numel() for member in self.members])
        return [part.view_as(member) for part, member in zip(parts, self.members, strict=True)]

    def release(self) -> None:
        """Give each member memory of its own again, and its part of the last gradient."""
        flat = self.flat.grad
        gradients = [None] * len(self.members) if flat is None else self.split(flat)
        for member, gradient in zip(self.members, gradients, strict=True):
            member.data = member.detach().clone()
            member.grad = gradient
            del member.pack  # type: ignore[attr-defined]


class AutogradInputs:
    """Autograd inputs of a custom op: one flat tensor per pack, and every unpacked parameter.

    Args:
        parameters: All parameters of the op. Either all members of a pack get a gradient, or none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        packs: list[ParameterPack | None] = [getattr(each, "pack", None) for each in parameters]
        self.packs = list({id(pack): pack for pack in packs if pack is not None}.values())
        self.singles = [each for each, pack in zip(parameters, packs, strict=True) if pack is None]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors to pass to `apply`: packs first, then single parameters."""
        return [*(pack.flat for pack in self.packs), *self.singles]

    def gradients(self, each: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of `tensors`, from those of all parameters in the order of construction."""
        if not self.packs:
            return list(each)
        by_id = {id(own): grad for own, grad in zip(self.parameters, each, strict=True)}
        packed = [_pack_gradient(pack, by_id) for pack in self.packs]
        return [*packed, *(by_id[id(single)] for single in self.singles)]


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Tensors in a row `(numbers of all,)`."""
    flat: Tensor = torch._utils._flatten_dense_tensors(list(parts))
    return flat


def _pack_gradient(pack: ParameterPack, by_id: Mapping[int, Tensor | None]) -> Tensor | None:
    gradients = [grad for member in pack.members if (grad := by_id[id(member)]) is not None]
    assert len(gradients) in (0, len(pack.members))
    return flatten(gradients) if gradients else None
