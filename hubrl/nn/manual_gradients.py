"""Small layers without autograd's bookkeeping, with a backward pass by formula.

The time of an operation on a few dozen numbers is that of its call. So small layers have their
derivatives written out: two products and a sum per layer.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.Tanh: torch.ops.aten.tanh_backward.default,
    nn.ReLU: lambda gradient, output: gradient * (output > 0),
}
"""Gradient before an activation, from the gradient behind it and the activation's output."""

NUMPY_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda rows: np.maximum(rows, 0),
}

MAX_NUMPY_ROWS = 32
"""Rows up to which small layers are faster in numpy, whose calls cost less than torch's."""

MAX_NUMPY_PRODUCTS = 2**18
"""Multiplications up to which a layer is small; numpy's OpenBLAS starts threads for more."""


def is_tracing() -> bool:
    """Whether torch records a graph of what is computed now (`hubrl.export.graph`).

    An exported graph has no branches that depend on data, and no numpy.
    """
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def tanh(rows: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """`torch.tanh`, by numpy where possible: nine times faster on processors with AVX512."""
    if rows.requires_grad or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return torch.tanh(rows)
    return torch.from_numpy(np.tanh(rows.numpy()))


def symlog(rows: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch inputs"]:
    """Symmetric logarithm, sign(x) log(1 + |x|)."""
    if is_tracing():  # ONNX has no copysign
        return rows.sign() * rows.abs().log1p()
    return rows.abs().log1p().copysign(rows)


def linear(rows: Float[Tensor, "batch inputs"], layer: nn.Linear) -> Float[Tensor, "batch outputs"]:
    """Output of a linear layer, without the hooks of calling it."""
    return functional.linear(rows, layer.weight, layer.bias)


def linear_gradients(
    gradient: Float[Tensor, "batch outputs"], rows: Float[Tensor, "batch inputs"]
) -> list[Tensor]:
    """Gradients of a linear layer's weight and bias, from its output's gradient and its input."""
    return [gradient.t() @ rows, gradient.sum(dim=0)]


class ManualMLP:
    """Hidden layers of a network with their gradients: linear layers, an activation behind each.

    Args:
        layers: Layers such as SB3's `policy_net`; an empty one is the identity.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self.linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.activations = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        self._steps = [
            (layer.weight, layer.bias, tanh if isinstance(each, nn.Tanh) else each.forward)
            for layer, each in zip(self.linear, self.activations, strict=True)
        ]

    @staticmethod
    def supports(layers: nn.Module) -> bool:
        """Whether manual derivatives of these layers exist and none of them has hooks."""
        if not isinstance(layers, nn.Sequential) or len(layers) % 2:
            return False
        linear, activations = list(layers)[::2], list(layers)[1::2]
        known = all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        known = known and {type(layer) for layer in activations} <= set(SLOPES)
        return known and not has_hooks(layers)

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of every layer, in order."""
        return [parameter for weight, bias, _ in self._steps for parameter in (weight, bias)]

    def forward(self, rows: Float[Tensor, "batch inputs"]) -> list[Float[Tensor, "batch _"]]:
        """The input, then the output of every layer behind its activation."""
        outputs = [rows]
        for weight, bias, activation in self._steps:
            outputs.append(activation(functional.linear(outputs[-1], weight, bias)))
        return outputs

    def backward(
        self,
        outputs: Sequence[Float[Tensor, "batch _"]],
        gradient: Float[Tensor, "batch outputs"],
        *,
        inputs: bool,
    ) -> tuple[Float[Tensor, "batch inputs"] | None, list[Tensor]]:
        """Gradients of the input, if wanted, and of `parameters`, in order.

        Args:
            outputs: The result of `forward`.
            gradient: Gradient of the last output.
            inputs: Whether the input's gradient is wanted.
        """
        found: list[list[Tensor]] = []
        for index in reversed(range(len(self.linear))):
            gradient = SLOPES[type(self.activations[index])](gradient, outputs[index + 1])
            found.append(linear_gradients(gradient, outputs[index]))
            if index > 0 or inputs:
                gradient = gradient @ self._steps[index][0]
        return gradient if inputs else None, list(itertools.chain.from_iterable(reversed(found)))


def fits_numpy(rows: Float[Tensor, " batch *any"], weights: int) -> bool:
    """Whether numpy is the faster way: few rows, on the CPU, and no gradient or trace wanted.

    Args:
        rows: Input of the layers.
        weights: Number of weights of the largest layer.
    """
    n_rows = len(rows)
    small = n_rows <= MAX_NUMPY_ROWS and n_rows * weights <= MAX_NUMPY_PRODUCTS
    free = small and rows.device.type == "cpu" and not torch.is_grad_enabled()
    return free and not is_tracing()


def has_hooks(module: nn.Module) -> bool:
    """Whether a module or a part of it has hooks, which only a call by torch runs."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, each) for part in module.modules() for each in hooks)
