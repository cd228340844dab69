"""Lite Zoo-Tuning: gates that are the same for all that is read, so that one plain network is left in the end."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hubrl.methods.gated_layers import GatedLayer
from hubrl.methods.registry import register
from hubrl.methods.zoo_tuning import ZooTuning, layer_name, layers_in
from hubrl.sources.layers import Kernel

DECAY = 0.9
"""Of the temporal ensemble [Zoo-Tuning's code]."""

SAMPLE = 1000
"""Weights that are looked at to see whether an average was written over all of them."""


class LiteLayer(GatedLayer):
    """A layer whose gates are their temporal ensemble `A`, one number a source.

    Forward always goes through `A`; in a gradient step the gradient flows through the batch's mean of the gates
    (straight-through), and when learning is over for a while `A <- 0.9 A + 0.1 mean` with the mean of all batches since.
    `A` starts where the gates do, which is their first mean. It is called `running_*`, so that SB3 copies it to target networks.
    """

    def __init__(self, layers: Sequence[Kernel], channels: int, *, align: bool, gate: bool) -> None:
        super().__init__(layers, channels, align=align, gate=gate)
        self.register_buffer("running_gates", self.get_buffer("start").clone())
        self._seen: list[Tensor] = []
        # What is saved right behind an update must be what will act from then on.
        self.register_state_dict_pre_hook(lambda layer, *_: layer.advance())  # type: ignore[no-untyped-call]
        self._kept: tuple[list[tuple[int, int]], Tensor, Tensor, Tensor | None] | None = None

    def forward(self, read: Float[Tensor, " batch *layer"]) -> Float[Tensor, " batch *next"]:
        """What the layer says through `A`."""
        ensemble = self.get_buffer("running_gates")
        if self.gates is not None and self.training and torch.is_grad_enabled():
            mean = self.gates(read, self.get_buffer("start")).mean(dim=0)
            self._seen.append(mean.detach())
            return self._apply_kernel(read, *self.aggregated(ensemble + (mean - mean.detach())))
        weight, bias = self.aggregated(ensemble) if torch.is_grad_enabled() else self._merged()
        return self._apply_kernel(read, weight, bias)

    def train(self, mode: bool = True) -> "LiteLayer":
        """`nn.Module.train`; when an update is over, `A` advances."""
        if not mode:
            self.advance()
        super().train(mode)
        return self

    @torch.no_grad()
    def begin(self, start: Float[Tensor, " sources"]) -> None:
        """Let the gates and `A` start there."""
        super().begin(start)
        self.get_buffer("running_gates").copy_(start)

    @torch.no_grad()
    def advance(self) -> None:
        """Let `A` follow the gates of all batches that were learned since it last did."""
        if self._seen:
            mean = torch.stack(self._seen).mean(dim=0)
            self._seen.clear()
            self.get_buffer("running_gates").mul_(DECAY).add_(mean, alpha=1 - DECAY)

    def plain(self) -> Kernel:
        """An ordinary layer that says the same."""
        return self._ordinary(*self.aggregated(self.get_buffer("running_gates")))

    def _merged(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias, made anew only if what they are made of has changed."""
        parts = [part for part in (self.get_buffer("running_gates"), self.weight, self.bias, self.alignment) if part is not None]
        state = [(part._version, part.data_ptr()) for part in parts]
        # SB3's Polyak average writes through `.data`, which no version counts; it changes everything, so a sample tells.
        sample = torch.cat([part.detach().flatten()[:: 1 + part.numel() // SAMPLE] for part in parts])
        if self._kept is None or self._kept[0] != state or not torch.equal(self._kept[1], sample):
            self._kept = (state, sample.clone(), *self.aggregated(self.get_buffer("running_gates")))
        return self._kept[2:]


@register("lite-zoo-tuning")
class LiteZooTuning(ZooTuning):
    """Zoo-Tuning whose gates do not depend on what is read (Shu et al., ICML 2021, the lite version): it can be exported.

    A departure that reinforcement learning needs: as published, training goes through the batch's mean gates and evaluation
    through their temporal ensemble, which starts at zero; PPO's ratio would not be 1, and the first rollout would act
    through kernels of zero. See `LiteLayer` for ours.

    Args:
        sources: The sources, in order; all of one architecture.
        target: What they have to fit.
        align: Whether output channels are aligned.
        gate: Whether gates are learned; otherwise they stay where they start.
        start: `uniform`: every kernel counts the same, as in the paper; `probe`: what a probe finds best of that and of every
            source alone, whose gates then start at 1 and the others' at 0. Without a probe it is uniform.
        align_lr: Learning rate of alignments, as a factor on the algorithm's; 0.03 at the level of outputs, 1 at that of
            features if not given, as `source_lr`.
        gate_lr: Learning rate of gates, likewise.
    """

    summary = "zoo-tuning with constant gates: merges to one plain network (ICML 2021)"
    layer = LiteLayer

    def measures(self) -> dict[str, float]:
        """Each source's share of the ensemble `A` in each layer."""
        return {
            f"gate/{layer_name(path)}/{name}": float(gate)
            for path, part in layers_in(self.pathways).items()
            for name, gate in zip(self.source_names, part.get_buffer("running_gates"), strict=True)
        }
