"""Optimizers in which a parameter can have a learning rate of its own, as a factor on the algorithm's.

SB3 writes its learning rate into every parameter group before each update. These keep the factor apart and apply it
during the step, so that schedules, saving and loading work as ever.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


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

    def __init__(
        self, params: Iterable[nn.Parameter], *args: Any, foreach: bool | None = None, fused: bool | None = None, **kwargs: Any
    ) -> None:
        self.free = foreach is None and fused is None
        """Whether nobody said how it steps."""
        super().__init__(params, *args, foreach=foreach, fused=self.free or fused, **kwargs)

    def step_as_torch(self) -> None:
        """Take torch's own steps from the first one on, bit for bit, unless somebody said how to step or it has begun already."""
        if not self.free or self.state:
            return
        for group in self.param_groups:
            group["fused"], group["foreach"] = False, True


class HubRMSprop(ScaledStep, torch.optim.RMSprop):
    """RMSprop with learning rates of their own for tuned sources, with A2C's settings unless told otherwise."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, alpha: float = 0.99, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, **kwargs)
