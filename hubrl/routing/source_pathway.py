"""One source as a member of routing."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn

from hubrl.routing.denormalize import Original
from hubrl.routing.target import Target
from hubrl.sources import action_params, shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.heads import GaussianAction
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

STD_RANGE = (0.05, 0.1)
"""Least and greatest standard deviation at which a source's pathway starts by itself, in units of the action [ours]."""


def starting_std(source: Source) -> float:
    """Standard deviation at which a source's pathway starts: the one it was trained with, within `STD_RANGE` [ours].

    Agents of on-policy algorithms learned one standard deviation for all states and stand it. Those of SAC, TQC and TD3
    did not, and start at the least: at twice as much, good ones earn a sixth less while training.
    """
    action = source.action
    if not isinstance(action, GaussianAction) or action.head.log_std != "parameter":
        return STD_RANGE[0]
    own = float(cast("Tensor", action.log_std).detach().exp().mean())
    return min(max(own, STD_RANGE[0]), STD_RANGE[1])


class SourcePathway(nn.Module):
    """One source, heard by the target at one level."""

    def __init__(self, source: Source, target: Target, width: int | None) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.projection = nn.Linear(source.width, width) if target.level == "features" and width is not None else None
        self.log_std: nn.Parameter | None = None
        if target.level == "outputs" and isinstance(target.action_space, spaces.Box) and target.source_std is not None:
            std = starting_std(source) if target.source_std == "auto" else target.source_std
            start = torch.full((get_action_dim(target.action_space),), std).log()
            self.log_std = nn.Parameter(start)
        self.original = Original(target.observation_space)
        self._encoders: BatchedSources | None = None

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """What the source says of the target's observations."""
        return self.voiced(self.listen(observations))

    def listen(self, observations: Observations) -> Float[Tensor, "batch said"]:
        """What the source itself says; if it is frozen, the same for the same observations for ever."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.source.frozen):
            if self._encoders is None or self._encoders.sources != [self.source]:  # a frozen source changes with the device
                self._encoders = BatchedSources([self.source], self.target.precision)
            return told([self], self._encoders, self.original(observations))[0]

    def in_target(self, said: Float[Tensor, "batch own_outputs"]) -> Float[Tensor, "batch outputs"]:
        """What the source says at the level of outputs, in the target's actions."""
        own, wanted = self.source.card.action_meanings, self.target.action_meanings
        return said if own is None or wanted is None or own == wanted else action_params.match_meanings(said, own, wanted)

    def voiced(self, said: Float[Tensor, "batch said"]) -> Float[Tensor, "batch width"]:
        """What the pathway makes of it: projected features, or outputs with the pathway's own standard deviation."""
        if self.projection is not None:
            projected: Tensor = self.projection(said)
            return projected
        if self.log_std is None:  # features as they are, too
            return said
        mean, _ = said.chunk(2, dim=1)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "SourcePathway":
        """Move everything but a frozen source, which others share; take the copy that is where we go."""
        if self.source.frozen:
            like = fn(torch.empty(0))
            self.source = shared.on_device(self.source, like)
            for module in (self.projection, self.original):
                if module is not None:
                    module._apply(fn)  # type: ignore[no-untyped-call]
            super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]
        else:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def told(pathways: Sequence[SourcePathway], encoders: BatchedSources, observations: Observations) -> list[Tensor]:
    """What the sources of some pathways themselves say of observations as they see them, at the target's level."""
    if pathways[0].target.level == "features":
        return encoders(observations)
    return [pathway.in_target(said) for pathway, said in zip(pathways, encoders.outputs(observations), strict=True)]
