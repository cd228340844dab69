"""Zoo-Tuning: the sources' parameters, aligned and aggregated layer by layer by what the layer reads."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.layers import Kernel, kernels, merged, owned, stacked
from hubrl.methods.base import register
from hubrl.methods.single import Alone
from hubrl.pathways import Pathways, Target
from hubrl.routing import ZeroLinear
from hubrl.source import Source


class Gates(nn.Module):
    """How much each source's kernel counts in one layer, from that layer's own input.

    `a(x) = (2/m) sigmoid(C2 relu(C1 pool(x)))`, one for each of `m` sources and not normalised [Zoo-Tuning's code], with
    the factor `2/m` [ours]: `C2` starts at zero, so that every gate starts at `1/m` and the layer at the mean kernel. The
    code has no such factor and leaves the scale to batch normalisation, which SB3's networks do not have.

    Args:
        channels: Channels of the layer's input.
        n_sources: The sources.
    """

    def __init__(self, channels: int, n_sources: int) -> None:
        super().__init__()
        self.channels, self.n_sources = channels, n_sources
        self.squeeze = nn.Linear(channels, channels // 4 + 1, bias=False)
        self.excite = ZeroLinear(channels // 4 + 1, n_sources)
        self.last = torch.full((n_sources,), 1 / n_sources)

    def forward(self, read: Float[Tensor, " batch *layer"]) -> Float[Tensor, "batch sources"]:
        """A gate for every source, row by row."""
        # Global average pooling; of what was flattened behind convolutions, over each channel's places.
        pooled = read.flatten(1).view(len(read), self.channels, -1).mean(dim=2)
        gates: Tensor = (2 / self.n_sources) * torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        self.last = gates.detach().mean(dim=0)
        return gates


class GatedLayer(nn.Module):
    """One layer made of all sources' layers: `W(x) = sum_i a_i(x) T_i W_i`, and the bias likewise.

    `T_i` mixes output channels, starts as the identity, and is left out for 1x1 kernels [Zoo-Tuning's code]. A layer is
    linear in its kernel, so that `sum_i a_i(x) (T_i W_i * x)` is the same and no kernel is ever made for a single sample.

    Args:
        layers: The sources' layers of one name; all of one shape.
        channels: Channels of the layer's input.
        align: Whether there are alignments; otherwise all stay the identity.
        gate: Whether there are gates; otherwise all stay `1/m`.
    """

    def __init__(self, layers: Sequence[Kernel], channels: int, *, align: bool, gate: bool) -> None:
        super().__init__()
        # The geometry alone; in a tuple, so that it is no part of this module.
        self.like = (copy.deepcopy(layers[0]).to("meta"),)
        self.weight = owned(stacked(layers, "weight"), layers[0])
        self.bias = None if layers[0].bias is None else owned(stacked(layers, "bias"), layers[0])
        outputs = self.weight.shape[1]
        pointwise = isinstance(layers[0], nn.Conv2d) and layers[0].kernel_size == (1, 1)
        aligned = align and not pointwise
        self.alignment = nn.Parameter(torch.eye(outputs).repeat(len(layers), 1, 1)) if aligned else None
        self.gates = Gates(channels, len(layers)) if gate else None

    def forward(self, read: Float[Tensor, " batch *layer"]) -> Float[Tensor, " batch *next"]:
        """What the aggregated layer says."""
        if self.gates is None:
            weight, bias = self.aggregated(self.neutral)
            return self._apply_kernel(read, weight, bias)
        gates = self.gates(read)
        said = self._each(read)
        return torch.einsum("bm,bm...->b...", gates, said)

    @property
    def neutral(self) -> Float[Tensor, " sources"]:
        """Gates of `1/m`."""
        return self.weight.new_full((len(self.weight),), 1 / len(self.weight))

    def aggregated(self, gates: Float[Tensor, " sources"]) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias for gates that do not depend on what is read."""
        mixing = gates[:, None, None] * (torch.eye(self.weight.shape[1], device=gates.device) if self.alignment is None else self.alignment)
        weight = torch.einsum("mpo,mo...->p...", mixing, self.weight)
        return weight, None if self.bias is None else torch.einsum("mpo,mo->p", mixing, self.bias)

    def plain(self) -> Kernel:
        """An ordinary layer that says the same.

        Raises:
            BadConfig: If the gates depend on what is read.
        """
        if self.gates is not None:
            raise BadConfig("The gates of zoo-tuning depend on what each layer reads, so that there is no one kernel")
        return self._ordinary(*self.aggregated(self.neutral))

    def _ordinary(self, weight: Tensor, bias: Tensor | None) -> Kernel:
        made = copy.deepcopy(self.like[0])
        made.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            made.bias = nn.Parameter(bias.detach().clone())
        return made

    def _each(self, read: Tensor) -> Float[Tensor, " batch sources *next"]:
        """What every source's aligned layer says."""
        n_sources, outputs = self.weight.shape[:2]
        conv = isinstance(self.like[0], nn.Conv2d)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if conv and self.alignment is not None:
            # Cheaper on the kernel than on what comes out of it at every place.
            weight = torch.einsum("mpo,mo...->mp...", self.alignment, weight)
            bias = None if bias is None else torch.einsum("mpo,mo->mp", self.alignment, bias)
        flat = self._apply_kernel(read, weight.flatten(0, 1), None if bias is None else bias.flatten())
        said = flat.view(len(read), n_sources, outputs, *flat.shape[2:])
        if conv or self.alignment is None:
            return said
        return torch.einsum("mpo,bmo->bmp", self.alignment, said)

    def _apply_kernel(self, read: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.like[0]
        if isinstance(like, nn.Conv2d):
            return functional.conv2d(read, weight, bias, like.stride, like.padding, like.dilation)
        return functional.linear(read, weight, bias)


@register("zoo-tuning")
class ZooTuning(Alone):
    """One network, each of whose layers is made of all sources' (Shu et al., *Zoo-Tuning*, ICML 2021), all of it trained.

    Channel alignment and data-dependent gates are the paper's, as its code has them for image classification; everything
    about reinforcement learning is ours: the gates' scale without batch normalisation (`Gates`), alignment of linear layers
    too, and at the level of outputs the sources' action heads, aggregated like any layer.

    Args:
        sources: The sources, in order; all of one architecture.
        target: What they have to fit.
        align: Whether output channels are aligned.
        gate: Whether gates depend on what each layer reads; otherwise every kernel counts the same.
    """

    summary = "the sources' kernels aligned and aggregated layer by layer, all trained (ICML 2021)"
    tunes = True
    corrects = False
    passes_observations = False
    layer: type[GatedLayer] = GatedLayer

    def __init__(self, sources: Sequence[Source], target: Target, *, align: bool = True, gate: bool = True) -> None:
        name = type(self).method_name
        if not sources:
            raise BadConfig(f"Method {name!r} needs a source; the hub has none.")
        head = target.level == "outputs"
        channels = _input_channels(sources[0], head=head)
        one = merged(
            sources,
            name,
            f"Method {name!r} aggregates layers of one shape",
            lambda path, layers: self.layer(layers, channels[path], align=align, gate=gate),
            head=head,
        )
        super().__init__(Pathways([one], target, fresh=False, project=False))
        self.source_names = [source.name for source in sources]

    def measures(self) -> dict[str, float]:
        """Each source's gate in each layer, averaged over the last batch."""
        return {
            f"gate/{layer_name(path)}/{name}": float(gate)
            for path, part in self.pathways.named_modules()
            if isinstance(part, Gates)
            for name, gate in zip(self.source_names, part.last, strict=True)
        }


def layer_name(path: str) -> str:
    """The name of a layer in its source, of the path of it or of its gates among the pathways."""
    return path.removeprefix("sources.0.source.").removesuffix(".gates")


def _input_channels(source: Source, *, head: bool) -> dict[str, int]:
    """The channels that each layer reads; those of a convolution behind which was flattened count by channel, not by place."""
    channels: dict[str, int] = {}
    last: Kernel | None = None
    for name, layer in kernels(source, head=head).items():
        if isinstance(layer, nn.Conv2d):
            channels[name] = layer.in_channels
        else:
            behind_conv = isinstance(last, nn.Conv2d) and layer.in_features % last.out_channels == 0
            channels[name] = last.out_channels if behind_conv and isinstance(last, nn.Conv2d) else layer.in_features
        last = layer
    return channels
