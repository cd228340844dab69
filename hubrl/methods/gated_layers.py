"""A layer made of several sources' layers, weighted by gates."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.nn.bf16 import fold_kernels
from hubrl.routing.router import ZeroLinear
from hubrl.sources.layers import Kernel, parameter_like, stack_layers


class Gates(nn.Module):
    """Gate of each source's kernel in one layer, from the layer's own input.

    `a(x) = s + (2/m) (sigmoid(C2 relu(C1 pool(x))) - 1/2)` for each of `m` sources, not normalised.
    `C2` starts at zero, so that every gate starts at its `s`. At `s = 1/m` this is
    `(2/m) sigmoid(...)`: Zoo-Tuning's code but for the factor `2/m` [new], where the code leaves
    the scale to batch normalisation, which SB3's networks do not have.

    Args:
        channels: Channels of the layer's input.
        n_sources: Number of sources.
    """

    def __init__(self, channels: int, n_sources: int) -> None:
        super().__init__()
        self.channels, self.n_sources = channels, n_sources
        self.squeeze = nn.Linear(channels, channels // 4 + 1, bias=False)
        self.excite = ZeroLinear(channels // 4 + 1, n_sources)
        self.last: Tensor | None = None
        self.scale = 1
        """Divisor of the inputs: 255 where they are pixels."""

    def forward(
        self, inputs: Float[Tensor, " batch *layer"], start: Float[Tensor, " sources"]
    ) -> Float[Tensor, "batch sources"]:
        """A gate for every source and row."""
        pooled = self._pooled(inputs)
        opened = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        gates: Tensor = start + (2 / self.n_sources) * (opened - 0.5)
        self.last = gates.detach()
        return gates

    def _pooled(self, inputs: Float[Tensor, " batch *layer"]) -> Float[Tensor, "batch channels"]:
        """Mean of each channel over its places, in float32."""
        if inputs.dtype == torch.bfloat16 and inputs.ndim == 4:
            # Sums in the order in which numbers lie in memory, channels last. Torch's mean would
            # convert all of them to float32 first. A channel of blocks is a pixel of each.
            sums = inputs.permute(0, 2, 3, 1).flatten(1, 2).sum(dim=1).float()
            places = inputs[0, 0].numel() * self.scale
            return sums.view(len(inputs), self.channels, -1).mean(dim=2) / places
        # Of flattened convolutions too, over each channel's places.
        pooled = inputs.flatten(1).view(len(inputs), self.channels, -1).mean(dim=2)
        return pooled.float() if inputs.dtype == torch.bfloat16 else pooled


class GatedLayer(nn.Module):
    """One layer of all sources' layers: `W(x) = sum_i a_i(x) T_i W_i`, and the bias likewise.

    `T_i` mixes output channels, starts as the identity, and is left out for 1x1 kernels
    [Zoo-Tuning's code]. A layer is linear in its kernel, so `sum_i a_i(x) (T_i W_i * x)` is the
    same, and no kernel is made for a single sample.

    Args:
        layers: The sources' layers of one name; all of one shape.
        channels: Channels of the layer's input.
        align: Whether alignments `T_i` are learned; otherwise they are the identity.
        gate: Whether gates are learned; otherwise they stay at their start, by default `1/m`.
    """

    def __init__(self, layers: Sequence[Kernel], channels: int, *, align: bool, gate: bool) -> None:
        super().__init__()
        # The geometry alone; in a tuple, so that it is no part of this module.
        self.like = (copy.deepcopy(layers[0]).to("meta"),)
        self.weight = parameter_like(stack_layers(layers, "weight"), layers[0])
        self.bias = None
        if layers[0].bias is not None:
            self.bias = parameter_like(stack_layers(layers, "bias"), layers[0])
        pointwise = isinstance(layers[0], nn.Conv2d) and layers[0].kernel_size == (1, 1)
        identities = torch.eye(self.weight.shape[1]).repeat(len(layers), 1, 1)
        self.alignment = nn.Parameter(identities) if align and not pointwise else None
        self.gates = Gates(channels, len(layers)) if gate else None
        self.register_buffer("start", torch.full((len(layers),), 1 / len(layers)))
        self.reads_blocks = False
        """Whether inputs in bfloat16 are the blocks of pixels of `fold_blocks`."""

    def read_blocks(self, scale: int) -> None:
        """Take inputs in bfloat16 as results of `fold_blocks`; of 8 x 8 pixels by steps of 4 alone.

        Args:
            scale: Divisor of the pixels.
        """
        self.reads_blocks, self.scale = True, scale
        if self.gates is not None:
            self.gates.scale = scale

    def forward(self, inputs: Float[Tensor, " batch *layer"]) -> Float[Tensor, " batch *next"]:
        """Output of the layer."""
        start = self.get_buffer("start")
        if self.gates is None:
            return self._apply_kernel(inputs, *self.mixed_kernel(start))
        gates, each = self.gates(inputs, start), self._source_outputs(inputs)
        return torch.einsum("bm,bm...->b...", gates.to(each.dtype), each)

    @torch.no_grad()
    def set_start(self, start: Float[Tensor, " sources"]) -> None:
        """Set the initial gates."""
        self.get_buffer("start").copy_(start)

    @property
    def mean_gates(self) -> Float[Tensor, " sources"]:
        """Gates averaged over the last batch."""
        last = None if self.gates is None else self.gates.last
        return self.get_buffer("start") if last is None else last.mean(dim=0)

    def mixed_kernel(self, gates: Float[Tensor, " sources"]) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias for gates that do not depend on the input."""
        if self.alignment is None:
            weight = torch.einsum("m,m...->...", gates, self.weight)
            return weight, None if self.bias is None else gates @ self.bias
        mixing = gates[:, None, None] * self.alignment
        weight = torch.einsum("mpo,mo...->p...", mixing, self.weight)
        bias = None if self.bias is None else torch.einsum("mpo,mo->p", mixing, self.bias)
        return weight, bias

    def to_plain_layer(self) -> Kernel:
        """An ordinary layer with the same output.

        Raises:
            BadConfig: If the gates depend on the input.
        """
        if self.gates is not None:
            raise BadConfig(
                "The gates of zoo-tuning depend on what each layer reads, so that there is no one "
                "kernel"
            )
        return self._plain_layer(*self.mixed_kernel(self.get_buffer("start")))

    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> Kernel:
        layer = copy.deepcopy(self.like[0])
        layer.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    def _source_outputs(self, inputs: Tensor) -> Float[Tensor, " batch sources *next"]:
        """Output of every source's aligned layer."""
        n_sources, outputs = self.weight.shape[:2]
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        # Alignment of the kernel or of its output, whichever costs less.
        on_kernel = isinstance(self.like[0], nn.Conv2d) or weight.shape[2] < len(inputs)
        if on_kernel and self.alignment is not None:
            weight = torch.einsum("mpo,mo...->mp...", self.alignment, weight)
            bias = None if bias is None else torch.einsum("mpo,mo->mp", self.alignment, bias)
        flat_bias = None if bias is None else bias.flatten()
        flat = self._apply_kernel(inputs, weight.flatten(0, 1), flat_bias)
        each = flat.view(len(inputs), n_sources, outputs, *flat.shape[2:])
        if on_kernel or self.alignment is None:
            return each
        return torch.einsum("mpo,bmo->bmp", self.alignment.to(each.dtype), each)

    def _apply_kernel(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.apply_cast(inputs, *self.cast(weight, bias, inputs.dtype))

    def cast(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        """Kernel and perhaps bias as `apply_cast` takes them, for inputs of a precision."""
        if dtype == torch.bfloat16:
            weight = fold_kernels(weight / self.scale) if self.reads_blocks else weight
            weight = weight.bfloat16()
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
        return [weight] if bias is None else [weight, bias.to(dtype)]

    def apply_cast(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Outputs of a kernel and a bias from `cast`."""
        like = self.like[0]
        if self.reads_blocks and inputs.dtype == torch.bfloat16:
            return functional.conv2d(inputs, weight, bias)
        if isinstance(like, nn.Conv2d):
            stride, padding, dilation = like.stride, like.padding, like.dilation
            return functional.conv2d(inputs, weight, bias, stride, padding, dilation)
        return functional.linear(inputs, weight, bias)
