"""Lite Zoo-Tuning: gates that do not depend on the input, so that one plain network is left."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.methods.gated_layers import GatedLayer
from hubrl.methods.registry import register
from hubrl.methods.zoo_tuning import ZooTuning, layer_name, layers_in
from hubrl.nn.freezing import WeightCache
from hubrl.sources.layers import Kernel

DECAY = 0.9
"""Decay of the temporal ensemble [Zoo-Tuning's code]."""


class LiteLayer(GatedLayer):
    """A layer whose gates are their temporal ensemble `A`, one number a source.

    The forward pass always uses `A`; in a gradient step the gradient flows through the batch's mean
    gates (straight-through), and behind an update `A <- 0.9 A + 0.1 mean` with the mean of all its
    batches. `A` starts at the initial gates, which are their first mean. Its buffer is called
    `running_*`, because SB3 copies buffers of that name to target networks.

    Args:
        layers: As of `GatedLayer`.
        channels: As of `GatedLayer`.
        align: As of `GatedLayer`.
        gate: As of `GatedLayer`.
    """

    def __init__(self, layers: Sequence[Kernel], channels: int, *, align: bool, gate: bool) -> None:
        super().__init__(layers, channels, align=align, gate=gate)
        self.register_buffer("running_gates", self.get_buffer("start").clone())
        self._batch_means: list[Tensor] = []
        # Weights saved right behind an update must be those that act from then on.
        self.register_state_dict_pre_hook(lambda layer, *_: layer.advance())  # type: ignore[no-untyped-call]
        self._merged: tuple[object, WeightCache] = None, WeightCache()

    def forward(self, inputs: Float[Tensor, " batch *layer"]) -> Float[Tensor, " batch *next"]:
        """Output of the layer with the gates `A`."""
        ensemble = self.get_buffer("running_gates")
        if not torch.is_grad_enabled():
            return self.apply_cast(inputs, *self._merged_kernel(inputs.dtype))
        if self.gates is not None and self.training:
            mean = self.gates(inputs, self.get_buffer("start")).mean(dim=0)
            self._batch_means.append(mean.detach())
            ensemble = ensemble + (mean - mean.detach())
        return self._apply_kernel(inputs, *self.mixed_kernel(ensemble))

    def train(self, mode: bool = True) -> "LiteLayer":
        """`nn.Module.train`; at the end of an update `A` advances."""
        if not mode:
            self.advance()
        super().train(mode)
        return self

    @torch.no_grad()
    def set_start(self, start: Float[Tensor, " sources"]) -> None:
        """Set the initial gates and `A`."""
        super().set_start(start)
        self.get_buffer("running_gates").copy_(start)

    @torch.no_grad()
    def advance(self) -> None:
        """Move `A` towards the mean gates of all batches since the last call."""
        if self._batch_means:
            mean = torch.stack(self._batch_means).mean(dim=0)
            self._batch_means.clear()
            self.get_buffer("running_gates").mul_(DECAY).add_(mean, alpha=1 - DECAY)

    def to_plain_layer(self) -> Kernel:
        """An ordinary layer with the same output."""
        return self._plain_layer(*self.mixed_kernel(self.get_buffer("running_gates")))

    def _merged_kernel(self, dtype: torch.dtype) -> list[Tensor]:
        """Kernel and bias as they are applied, computed anew only if one of their parts changed."""
        gates = self.get_buffer("running_gates")
        # SB3's Polyak average writes gates through `.data`, which no version counts.
        state = dtype, gates.tolist()
        known, cache = self._merged
        if state != known:
            # One attribute for both: another thread may read them at any time.
            self._merged = state, (cache := WeightCache())
        parts = [part for part in (self.weight, self.bias, self.alignment) if part is not None]
        return cache.get(parts, lambda: self.cast(*self.mixed_kernel(gates), dtype))


@register("lite-zoo-tuning")
class LiteZooTuning(ZooTuning):
    """Zoo-Tuning with gates that do not depend on the input (the lite version), for export.

    A departure: as published, training uses the batch's mean gates and evaluation their temporal
    ensemble, which starts at zero; PPO's ratio would not be 1, and the first rollout would act
    through kernels of zero. `LiteLayer` is an addition of hubrl.

    Args:
        sources: The sources, in order; all of one architecture.
        target: The target's spaces and level.
        align: Whether output channels are aligned.
        gate: Whether gates are learned; otherwise they stay at their start.
        start: Initial gates. `uniform`: every kernel counts the same, as in the paper; `probe`: the
            best in a probe of that and of every source alone, whose gates start at 1 and the
            others' at 0. Without a probe it is uniform.
        align_lr: Learning rate of alignments, as a factor on the algorithm's; by default 0.03 at
            the level of outputs, 1 at that of features, as `source_lr`.
        gate_lr: Learning rate of gates, likewise.
    """

    summary = "zoo-tuning with constant gates: merges to one plain network (ICML 2021)"
    layer = LiteLayer

    def measures(self) -> dict[str, float]:
        """Each source's share of the ensemble `A` in each layer."""
        return {
            f"gate/{layer_name(path)}/{name}": float(gate)
            for path, layer in layers_in(self.pathways).items()
            for name, gate in zip(self.source_names, layer.get_buffer("running_gates"), strict=True)
        }
