"""Optimizers in which a parameter can have a learning rate of its own, as a factor on the algorithm's.

SB3 writes its learning rate into every parameter group before each update. These keep the factor apart and apply it
during the step, so that schedules, saving and loading work as ever.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from hubrl.nn.parameter_packing import Pack, joined

STEP = "step"
"""How Adam calls how often it stepped a parameter, which alone of what it knows has not the parameter's shape."""


class ScaledStep(torch.optim.Optimizer):
    """Groups parameters by their `lr_scale` attribute (one if they have none) and steps each at that rate."""

    def __init__(self, params: Iterable[nn.Parameter], *args: Any, **kwargs: Any) -> None:
        by_scale: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in params:
            by_scale[getattr(parameter, "lr_scale", 1.0)].append(parameter)
        groups = [{"params": members, "lr_scale": scale} for scale, members in by_scale.items()]
        super().__init__(groups, *args, **kwargs)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step, every group at its own rate."""
        given = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"]
        done = super().step(closure)
        for group, rate in zip(self.param_groups, given, strict=True):
            group["lr"] = rate
        return done


class HubAdam(ScaledStep, torch.optim.Adam):
    """Adam with learning rates of their own for tuned sources.

    It is fused unless told otherwise: a hub has many small parameters, and one call steps them all.
    """

    __module__ = "hubrl"  # saved files name the class by this

    packs: Sequence[Pack] = ()
    """Parameters that are stepped together, see `pack`."""

    def __init__(
        self, params: Iterable[nn.Parameter], *args: Any, foreach: bool | None = None, fused: bool | None = None, **kwargs: Any
    ) -> None:
        self.free = foreach is None and fused is None
        """Whether nobody said how it steps."""
        super().__init__(params, *args, foreach=foreach, fused=self.free or fused, **kwargs)

    def pack(self, parts: Iterable[Sequence[Tensor]]) -> None:
        """Step the parameters of each part as one until `unpack`, as far as they are at one rate and were stepped as often.

        Args:
            parts: Each of parameters whose gradients are made by hand, for all of them or for none.
        """
        self._before = [list(group["params"]) for group in self.param_groups]
        home = {parameter: index for index, members in enumerate(self._before) for parameter in members}
        alike: dict[tuple[object, ...], list[nn.Parameter]] = defaultdict(list)
        for number, part in enumerate(parts):
            for parameter in cast("Sequence[nn.Parameter]", part):
                steps = float(self.state[parameter][STEP]) if parameter in self.state else None
                alike[number, home[parameter], steps, parameter.dtype, parameter.device].append(parameter)
        packs = [Pack(members) for members in alike.values()]
        for pack in packs:
            members, group = pack.members, self.param_groups[home[pack.members[0]]]
            states = [self.state.pop(member) for member in members if member in self.state]
            if states:
                self.state[pack.whole] = {
                    name: states[0][name] if name == STEP else joined([state[name] for state in states]) for name in states[0]
                }
            packed = set(members)
            group["params"] = [*(parameter for parameter in group["params"] if parameter not in packed), pack.whole]
        self.packs = packs

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`torch.optim.Optimizer.zero_grad`; of packs at once."""
        if not (self.packs and set_to_none):
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; of packs by Adam's function itself, because what `torch.optim` does around it takes as long."""
        if closure is not None or not self.packs or not self._is_plain:
            return super().step(closure)
        with torch.no_grad():
            self._step_all()
        return None

    def _step_all(self) -> None:
        for group in self.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
            known = [self.state[parameter] for parameter in stepped]
            adam(
                stepped,
                [cast("Tensor", parameter.grad) for parameter in stepped],
                [state["exp_avg"] for state in known],
                [state["exp_avg_sq"] for state in known],
                [],
                [state[STEP] for state in known],
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
    def _is_plain(self) -> bool:
        """Whether every parameter was stepped before, in the usual way."""
        usual = all(group["fused"] and not (group["amsgrad"] or group["decoupled_weight_decay"]) for group in self.param_groups)
        stepped = (parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None)
        return usual and all(self.state.get(parameter) for parameter in stepped)

    def unpack(self) -> None:
        """Step each parameter by itself again, as if it had been all the time."""
        for pack in self.packs:
            pack.release()
            state = self.state.pop(pack.whole, {})
            parts = {name: [value] * len(pack.members) if name == STEP else pack.split(value) for name, value in state.items()}
            for place, member in enumerate(pack.members):
                if parts:
                    self.state[member] = {name: values[place].clone() for name, values in parts.items()}
        if self.packs:
            for group, members in zip(self.param_groups, self._before, strict=True):
                group["params"] = members
        self.packs = ()

    def state_dict(self) -> dict[str, Any]:
        """`torch.optim.Optimizer.state_dict`; each parameter is by itself from here on."""
        self.unpack()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """`torch.optim.Optimizer.load_state_dict`, likewise."""
        self.unpack()
        super().load_state_dict(state_dict)

    def step_as_torch(self) -> None:
        """Take torch's own steps from the first one on, bit for bit, unless somebody said how to step or it has begun already."""
        if not self.free or self.state:
            return
        for group in self.param_groups:
            group["fused"], group["foreach"] = False, True


class HubRMSprop(ScaledStep, torch.optim.RMSprop):
    """RMSprop with learning rates of their own for tuned sources, with A2C's settings unless told otherwise."""

    __module__ = "hubrl"  # saved files name the class by this

    def __init__(self, params: Iterable[nn.Parameter], lr: float, alpha: float = 0.99, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, **kwargs)
