"""Optimizers in which a parameter's learning rate can be a multiple of the algorithm's.

SB3 writes its learning rate into every parameter group before each update. Here the factor is kept
apart and applied during the step, so that schedules, saving and loading work as with torch's own.

During an update parameters whose gradients are computed together can share one piece of memory:
autograd, clipping and the optimizer treat such a pack as one parameter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch._utils
from torch import Tensor, nn
from torch.optim.adam import adam

STEP = "step"
"""Key of Adam's step count, the only part of its state without the parameter's shape."""


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
        blocks: All parameters of the op: each by itself, or several of the same trailing shape
            whose gradients are computed as one. Either all members of a pack get a gradient, or
            none.
    """

    def __init__(self, blocks: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self._blocks = [[each] if isinstance(each, Tensor) else list(each) for each in blocks]
        self.parameters = [parameter for block in self._blocks for parameter in block]
        packs: list[ParameterPack | None] = [
            getattr(each, "pack", None) for each in self.parameters
        ]
        self.packs = list({id(pack): pack for pack in packs if pack is not None}.values())
        self.singles = [
            each for each, pack in zip(self.parameters, packs, strict=True) if pack is None
        ]
        self.tensors = [*(pack.flat for pack in self.packs), *self.singles]
        """The tensors to pass to `apply`: packs first, then single parameters."""
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self._packed = [[places[id(member)] for member in pack.members] for pack in self.packs]
        self._single = [places[id(single)] for single in self.singles]
        self._blocks_packed = [self._blocks_of(pack) for pack in self.packs]
        self.packs_blocks = bool(self.packs) and not self.singles and all(self._blocks_packed)
        """Whether all blocks lie whole in packs, so that views of these are always up to date."""

    def _blocks_of(self, pack: ParameterPack) -> list[int]:
        """Indices of the blocks of which a pack consists; empty if there are others in it."""
        by_first = {id(block[0]): index for index, block in enumerate(self._blocks)}
        own = [by_first[id(each)] for each in pack.members if id(each) in by_first]
        members = [each for index in own for each in self._blocks[index]]
        return own if list(map(id, members)) == list(map(id, pack.members)) else []

    def gradients(self, each: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of `tensors`, from those of all blocks in the order of construction."""
        if self.packs_blocks:
            return [_flat_gradient([each[index] for index in own]) for own in self._blocks_packed]
        members: list[Tensor | None] = []
        for block, gradient in zip(self._blocks, each, strict=True):
            members += [gradient] if len(block) == 1 else _split_like(gradient, block)
        packed = [_flat_gradient([members[place] for place in places]) for places in self._packed]
        return [*packed, *[members[place] for place in self._single]]


def _split_like(gradient: Tensor | None, block: Sequence[Tensor]) -> list[Tensor | None]:
    """Each parameter's part of the gradient of a block."""
    if gradient is None:
        return [None] * len(block)
    parts = gradient.flatten().split([parameter.numel() for parameter in block])
    return [part.view_as(parameter) for part, parameter in zip(parts, block, strict=True)]


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Tensors in a row `(numbers of all,)`."""
    flat: Tensor = torch._utils._flatten_dense_tensors(list(parts))
    return flat


def _flat_gradient(each: Sequence[Tensor | None]) -> Tensor | None:
    gradients = [gradient for gradient in each if gradient is not None]
    assert len(gradients) in (0, len(each))
    return flatten(gradients) if gradients else None


class ScaledStep(torch.optim.Optimizer):
    """Optimizer that groups parameters by their attribute `lr_scale`, 1 without it."""

    def __init__(self, params: Iterable[nn.Parameter], *args: Any, **kwargs: Any) -> None:
        by_scale: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in params:
            by_scale[getattr(parameter, "lr_scale", 1.0)].append(parameter)
        groups = [{"params": own, "lr_scale": scale} for scale, own in by_scale.items()]
        super().__init__(groups, *args, **kwargs)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step, each group at its own rate."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"]
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss


class HubAdam(ScaledStep, torch.optim.Adam):
    """Adam with separate learning rates for tuned sources.

    The fused kernel is the default: a hub has many small parameters, and one call steps them all.
    """

    __module__ = "hubrl"  # saved files name the class by this

    packs: Sequence[ParameterPack] = ()
    """Parameters that are stepped as one, see `pack`."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *args: Any,
        foreach: bool | None = None,
        fused: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.default_kernel = foreach is None and fused is None
        """Whether the user left the choice of the kernel open."""
        fused = self.default_kernel or fused
        super().__init__(params, *args, foreach=foreach, fused=fused, **kwargs)

    def pack(self, parts: Iterable[Sequence[Tensor]]) -> None:
        """Step the parameters of each part as one until `unpack`.

        Parameters of different rates or step counts stay in separate packs.

        Args:
            parts: Parameters with manual gradients, which exist for a whole part or not at all.
        """
        self._before = [list(group["params"]) for group in self.param_groups]
        home = {member: index for index, own in enumerate(self._before) for member in own}
        alike: dict[tuple[object, ...], list[nn.Parameter]] = defaultdict(list)
        for number, part in enumerate(parts):
            for parameter in cast("Sequence[nn.Parameter]", part):
                steps = float(self.state[parameter][STEP]) if parameter in self.state else None
                kind = (number, home[parameter], steps, parameter.dtype, parameter.device)
                alike[kind].append(parameter)
        self.packs = [ParameterPack(members) for members in alike.values()]
        for pack in self.packs:
            self._pack_state(pack)
            packed, group = set(pack.members), self.param_groups[home[pack.members[0]]]
            rest = (parameter for parameter in group["params"] if parameter not in packed)
            group["params"] = [*rest, pack.flat]

    def _pack_state(self, pack: ParameterPack) -> None:
        states = [self.state.pop(member) for member in pack.members if member in self.state]
        if states:
            self.state[pack.flat] = {
                name: value if name == STEP else flatten([state[name] for state in states])
                for name, value in states[0].items()
            }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`torch.optim.Optimizer.zero_grad`, faster while there are packs."""
        if not (self.packs and set_to_none):
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; with packs by Adam's function alone, half of the time of `torch.optim`."""
        if closure is not None or not self.packs or not self._can_call_adam:
            return super().step(closure)
        with torch.no_grad():
            self._call_adam()
        return None

    def _call_adam(self) -> None:
        for group in self.param_groups:
            stepped = [each for each in group["params"] if each.grad is not None]
            states = [self.state[parameter] for parameter in stepped]
            adam(
                stepped,
                [cast("Tensor", parameter.grad) for parameter in stepped],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state[STEP] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"] * group["lr_scale"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )

    @property
    def _can_call_adam(self) -> bool:
        """Whether every parameter has a state, and no group has special settings."""
        for group in self.param_groups:
            if not group["fused"] or group["amsgrad"] or group["decoupled_weight_decay"]:
                return False
            if not all(self.state.get(own) for own in group["params"] if own.grad is not None):
                return False
        return True

    def unpack(self) -> None:
        """Step each parameter by itself again, with the state it would have had."""
        for pack in self.packs:
            pack.release()
            state = self.state.pop(pack.flat, {})
            count = len(pack.members)
            parts = {
                name: [value] * count if name == STEP else pack.split(value)
                for name, value in state.items()
            }
            for place, member in enumerate(pack.members):
                if parts:
                    self.state[member] = {name: own[place].clone() for name, own in parts.items()}
        if self.packs:
            for group, members in zip(self.param_groups, self._before, strict=True):
                group["params"] = members
        self.packs = ()

    def state_dict(self) -> dict[str, Any]:
        """`torch.optim.Optimizer.state_dict`; ends packing."""
        self.unpack()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """`torch.optim.Optimizer.load_state_dict`; ends packing."""
        self.unpack()
        super().load_state_dict(state_dict)

    def use_torch_kernel(self) -> None:
        """Step as torch does by default, unless the kernel was chosen or a step was taken."""
        if not self.default_kernel or self.state:
            return
        for group in self.param_groups:
            group["fused"], group["foreach"] = False, True


class HubRMSprop(ScaledStep, torch.optim.RMSprop):
    """RMSprop with separate learning rates for tuned sources; its defaults are A2C's."""

    __module__ = "hubrl"  # saved files name the class by this

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, **kwargs)
