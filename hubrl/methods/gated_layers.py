"""A layer that is made of several sources' layers, which gates weigh by what it reads."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.routing.router import ZeroLinear
from hubrl.sources.layers import Kernel, parameter_like, stack_layers


class Gates(nn.Module):
    """How much each source's kernel counts in one layer, from that layer's own input.

    `a(x) = s + (2/m) (sigmoid(C2 relu(C1 pool(x))) - 1/2)`, one for each of `m` sources and not normalised. `C2` starts at
    zero, so that every gate starts at its `s`. At `s = 1/m` this is `(2/m) sigmoid(...)`: Zoo-Tuning's code but for the
    factor `2/m` [ours], where the code leaves the scale to batch normalisation, which SB3's networks do not have.

    Args:
        channels: Channels of the layer's input.
        n_sources: The sources.
    """

    def __init__(self, channels: int, n_sources: int) -> None:
        super().__init__()
        self.channels, self.n_sources = channels, n_sources
        self.squeeze = nn.Linear(channels, channels // 4 + 1, bias=False)
        self.excite = ZeroLinear(channels // 4 + 1, n_sources)
        self.last: Tensor | None = None

    def forward(self, read: Float[Tensor, " batch *layer"], start: Float[Tensor, " sources"]) -> Float[Tensor, "batch sources"]:
        """A gate for every source, row by row."""
        # Global average pooling; of what was flattened behind convolutions, over each channel's places.
        pooled = read.flatten(1).view(len(read), self.channels, -1).mean(dim=2)
        opened = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        gates: Tensor = start + (2 / self.n_sources) * (opened - 0.5)
        self.last = gates.detach()
        return gates


class GatedLayer(nn.Module):
    """One layer made of all sources' layers: `W(x) = sum_i a_i(x) T_i W_i`, and the bias likewise.

    `T_i` mixes output channels, starts as the identity, and is left out for 1x1 kernels [Zoo-Tuning's code]. A layer is
    linear in its kernel, so that `sum_i a_i(x) (T_i W_i * x)` is the same and no kernel is ever made for a single sample.

    Args:
        layers: The sources' layers of one name; all of one shape.
        channels: Channels of the layer's input.
        align: Whether there are alignments; otherwise all stay the identity.
        gate: Whether there are gates; otherwise all stay where they start, at `1/m` unless told otherwise.
    """

    def __init__(self, layers: Sequence[Kernel], channels: int, *, align: bool, gate: bool) -> None:
        super().__init__()
        # The geometry alone; in a tuple, so that it is no part of this module.
        self.like = (copy.deepcopy(layers[0]).to("meta"),)
        self.weight = parameter_like(stack_layers(layers, "weight"), layers[0])
        self.bias = None if layers[0].bias is None else parameter_like(stack_layers(layers, "bias"), layers[0])
        outputs = self.weight.shape[1]
        pointwise = isinstance(layers[0], nn.Conv2d) and layers[0].kernel_size == (1, 1)
        aligned = align and not pointwise
        self.alignment = nn.Parameter(torch.eye(outputs).repeat(len(layers), 1, 1)) if aligned else None
        self.gates = Gates(channels, len(layers)) if gate else None
        self.register_buffer("start", torch.full((len(layers),), 1 / len(layers)))

    def forward(self, read: Float[Tensor, " batch *layer"]) -> Float[Tensor, " batch *next"]:
        """What the aggregated layer says."""
        if self.gates is None:
            weight, bias = self.aggregated(self.get_buffer("start"))
            return self._apply_kernel(read, weight, bias)
        gates = self.gates(read, self.get_buffer("start"))
        said = self._each(read)
        return torch.einsum("bm,bm...->b...", gates, said)

    @torch.no_grad()
    def begin(self, start: Float[Tensor, " sources"]) -> None:
        """Let the gates start there."""
        self.get_buffer("start").copy_(start)

    @property
    def mean_gates(self) -> Float[Tensor, " sources"]:
        """The gates, averaged over the last batch."""
        last = None if self.gates is None else self.gates.last
        return self.get_buffer("start") if last is None else last.mean(dim=0)

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
        return self._ordinary(*self.aggregated(self.get_buffer("start")))

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
        # Where it costs less: on what comes out of the kernel, row by row, or on the kernel, input by input.
        on_kernel = conv or weight.shape[2] < len(read)
        if on_kernel and self.alignment is not None:
            weight = torch.einsum("mpo,mo...->mp...", self.alignment, weight)
            bias = None if bias is None else torch.einsum("mpo,mo->mp", self.alignment, bias)
        flat = self._apply_kernel(read, weight.flatten(0, 1), None if bias is None else bias.flatten())
        said = flat.view(len(read), n_sources, outputs, *flat.shape[2:])
        if on_kernel or self.alignment is None:
            return said
        return torch.einsum("mpo,bmo->bmp", self.alignment, said)

    def _apply_kernel(self, read: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.like[0]
        if isinstance(like, nn.Conv2d):
            return functional.conv2d(read, weight, bias, like.stride, like.padding, like.dilation)
        return functional.linear(read, weight, bias)
