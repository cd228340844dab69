"""A source as a pathway: its features or outputs, as the target uses them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.routing.target import TargetSpec
from hubrl.sources import action_params, shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.heads import GaussianAction
from hubrl.sources.preprocessing import Observations, Statistics
from hubrl.sources.source import Source

STD_RANGE = (0.05, 0.1)
"""Least and greatest `initial_std`, in units of the action [new]."""


def initial_std(source: Source) -> float:
    """Initial standard deviation of a source's pathway: its own, within `STD_RANGE` [new].

    Agents of on-policy algorithms were trained with one standard deviation for all states. Those of
    SAC, TQC and TD3 were not, and start at the least: at twice as much, the return of good ones in
    training is a sixth less.
    """
    action = source.action
    if not isinstance(action, GaussianAction) or action.head.log_std != "parameter":
        return STD_RANGE[0]
    own = float(cast("Tensor", action.log_std).detach().exp().mean())
    return min(max(own, STD_RANGE[0]), STD_RANGE[1])


class Denormalizer(nn.Module):
    """Raw observations from those that the target's VecNormalize normalised.

    The identity until a callback sets its statistics. Values that VecNormalize clipped stay
    clipped. Its buffers are called `running_*`, because SB3 copies buffers of that name to target
    networks.

    Args:
        space: The target's observations.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.is_identity = True
        """Whether no statistics are set, so that a call can be left out."""
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.keys = [
            key
            for key, part in parts.items()
            if isinstance(part, spaces.Box) and not is_image_space(part)
        ]
        for index, key in enumerate(self.keys):
            self.register_buffer(f"running_mean_{index}", torch.zeros(parts[key].shape or (1,)))
            self.register_buffer(f"running_std_{index}", torch.ones(parts[key].shape or (1,)))

    def set_statistics(self, statistics: Statistics, epsilon: float) -> None:
        """Copy the present statistics of the target's VecNormalize.

        Args:
            statistics: Mean and variance of each part that is normalised.
            epsilon: VecNormalize's, added to the variance.

        Raises:
            BadConfig: If their shape is not that of the observations.
        """
        for index, key in enumerate(self.keys):
            if key not in statistics:
                continue
            mean, var = statistics[key]
            own = self.get_buffer(f"running_mean_{index}")
            if mean.size != own.numel():
                raise BadConfig(
                    f"VecNormalize normalises observations of shape {mean.shape}, and the agent "
                    f"sees {tuple(own.shape)}; put VecNormalize around the wrapper that changes "
                    "them."
                )
            self.is_identity = False
            own.copy_(torch.as_tensor(mean))
            self.get_buffer(f"running_std_{index}").copy_(torch.as_tensor(var + epsilon).sqrt())

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # Read in every step, so that a GPU would be waited for.
        self.is_identity = not any(
            buffer.is_meta or bool((buffer != float("std" in name)).any())
            for name, buffer in self.named_buffers()
        )

    def forward(self, observations: Observations) -> Observations:
        """Observations before VecNormalize."""
        if self.is_identity:
            return observations
        if isinstance(observations, Tensor):
            return self._denormalized(0, observations)
        raw = {key: self._denormalized(i, observations[key]) for i, key in enumerate(self.keys)}
        return {**observations, **raw}

    def _denormalized(self, index: int, values: Tensor) -> Tensor:
        mean, std = (
            cast("Tensor", self._buffers[f"running_{moment}_{index}"]) for moment in ("mean", "std")
        )
        return torch.addcmul(mean, values, std)


class SourcePathway(nn.Module):
    """One source, its projection (features) or its standard deviation (outputs).

    Args:
        source: The source; a frozen one is shared with other models.
        target: The target's spaces and level.
        width: Width of the projection; None for features as they are.
    """

    def __init__(self, source: Source, target: TargetSpec, width: int | None) -> None:
        super().__init__()
        self.source = source
        self.target = target
        projects = target.level == "features" and width is not None
        self.projection = nn.Linear(source.width, cast("int", width)) if projects else None
        self.log_std: nn.Parameter | None = None
        continuous = target.level == "outputs" and isinstance(target.action_space, spaces.Box)
        if continuous and target.source_std is not None:
            std = initial_std(source) if target.source_std == "auto" else target.source_std
            n_actions = get_action_dim(cast("spaces.Box", target.action_space))
            self.log_std = nn.Parameter(torch.full((n_actions,), std).log())
        self.denormalizer = Denormalizer(target.observation_space)
        self._encoders: BatchedSources | None = None

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Output of the pathway: that of its source, projected or with a learned deviation."""
        return self.project(self.compute_source_outputs(observations))

    def compute_source_outputs(self, observations: Observations) -> Float[Tensor, "batch own"]:
        """Output of the source itself; a frozen one's depends on the observations alone."""
        if torch.is_grad_enabled() and self.source.frozen:
            with torch.no_grad():
                return self.compute_source_outputs(observations)
        # A frozen source is replaced when the model moves to another device.
        if self._encoders is None or self._encoders.sources != [self.source]:
            self._encoders = BatchedSources([self.source], self.target.precision)
        return batched_outputs([self], self._encoders, self.denormalizer(observations))[0]

    def match_actions(self, outputs: Float[Tensor, "batch own"]) -> Float[Tensor, "batch outputs"]:
        """Outputs of the source over the target's actions, by the names of both."""
        own, wanted = self.source.card.action_meanings, self.target.action_meanings
        if own is None or wanted is None or own == wanted:
            return outputs
        return action_params.match_meanings(outputs, own, wanted)

    def project(self, outputs: Float[Tensor, "batch own"]) -> Float[Tensor, "batch width"]:
        """Projected features, or outputs with the pathway's own standard deviation."""
        if self.projection is not None:
            projected: Tensor = self.projection(outputs)
            return projected
        if self.log_std is None:
            return outputs
        mean, _ = outputs.chunk(2, dim=1)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "SourcePathway":
        """`nn.Module._apply`; a frozen source is replaced by the shared copy on the device."""
        if self.source.frozen:
            self.source = shared.on_device(self.source, fn(torch.empty(0)))
            for module in (self.projection, self.denormalizer):
                if module is not None:
                    module._apply(fn)  # type: ignore[no-untyped-call]
            super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]
        else:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def batched_outputs(
    pathways: Sequence[SourcePathway], encoders: BatchedSources, observations: Observations
) -> list[Tensor]:
    """Features or outputs of several sources, by the target's level.

    Args:
        pathways: The pathways of the sources.
        encoders: The same sources.
        observations: Observations before the target's VecNormalize.
    """
    target = pathways[0].target
    if target.level == "features":
        return encoders(observations)
    each = encoders.outputs(observations)
    if target.action_meanings is None:
        return each
    pairs = zip(pathways, each, strict=True)
    return [pathway.match_actions(outputs) for pathway, outputs in pairs]
