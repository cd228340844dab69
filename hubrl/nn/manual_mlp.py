"""Linear layers and activations, forward and backward by hand.

For a few dozen units autograd's bookkeeping costs more than the arithmetic, whose derivatives are two products and a sum a layer.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.Tanh: torch.ops.aten.tanh_backward.default,
    nn.ReLU: lambda gradient, said: gradient * (said > 0),
}
"""What is left of a gradient before an activation, from what the activation said."""

IN_NUMPY: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {nn.Tanh: np.tanh, nn.ReLU: lambda rows: np.maximum(rows, 0)}
"""Activations of arrays."""

FEW = 32
"""Rows up to which small layers are faster in numpy: of so few an operation costs what calling it costs, and torch's call costs more."""

SMALL = 2**18
"""Multiplications of a product up to which layers are small; numpy's OpenBLAS takes threads of its own for more."""


def tanh(rows: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """As `torch.tanh`, which takes nine times as long as numpy's where the processor has AVX512."""
    if rows.requires_grad or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return torch.tanh(rows)
    return torch.from_numpy(np.tanh(rows.numpy()))


def linear(rows: Float[Tensor, "batch inputs"], layer: nn.Linear) -> Float[Tensor, "batch outputs"]:
    """What a linear layer makes of some rows."""
    return functional.linear(rows, layer.weight, layer.bias)


def linear_gradients(gradient: Float[Tensor, "batch outputs"], rows: Float[Tensor, "batch inputs"]) -> list[Tensor]:
    """Gradients of a linear layer's weight and bias, from that of what it made of some rows."""
    return [gradient.t() @ rows, gradient.sum(dim=0)]


class Perceptron:
    """Hidden layers of a network: linear ones, each followed by the same activation.

    Args:
        layers: Such as SB3's `policy_net`; perhaps empty, and then what it reads is what it says.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self.linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.activations = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        self._steps = [
            (layer.weight, layer.bias, tanh if isinstance(said, nn.Tanh) else said.forward)
            for layer, said in zip(self.linear, self.activations, strict=True)
        ]

    @staticmethod
    def serves(layers: nn.Module) -> bool:
        """Whether the derivatives of layers are known here, and nobody listens to them on the way."""
        if not isinstance(layers, nn.Sequential) or len(layers) % 2:
            return False
        linear, activations = list(layers)[::2], list(layers)[1::2]
        known = all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        return known and {type(layer) for layer in activations} <= set(SLOPES) and not overheard(layers)

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of every layer, in order."""
        return [parameter for weight, bias, _ in self._steps for parameter in (weight, bias)]

    def forward(self, rows: Float[Tensor, "batch inputs"]) -> list[Float[Tensor, "batch _"]]:
        """What it reads, and what every layer makes of it."""
        said = [rows]
        for weight, bias, activation in self._steps:
            said.append(activation(functional.linear(said[-1], weight, bias)))
        return said

    def backward(
        self, said: list[Float[Tensor, "batch _"]], gradient: Float[Tensor, "batch outputs"], *, inputs: bool
    ) -> tuple[Float[Tensor, "batch inputs"] | None, list[Tensor]]:
        """Gradients of what it read, if that is asked for, and of the parameters, in order.

        Args:
            said: What `forward` returned.
            gradient: Of the last of it.
            inputs: Whether the gradient of what it read is asked for.
        """
        found: list[list[Tensor]] = []
        for index in reversed(range(len(self.linear))):
            gradient = SLOPES[type(self.activations[index])](gradient, said[index + 1])
            found.append(linear_gradients(gradient, said[index]))
            if index > 0 or inputs:
                gradient = gradient @ self._steps[index][0]
        return gradient if inputs else None, list(itertools.chain.from_iterable(reversed(found)))


def few(rows: Float[Tensor, " batch *any"], weights: int) -> bool:
    """Whether numpy is to compute what follows: rows are few, in the processor's memory, and no gradient is asked for.

    Args:
        rows: What is read.
        weights: Of the largest layer that reads it.
    """
    n_rows = len(rows)
    return n_rows <= FEW and n_rows * weights <= SMALL and rows.device.type == "cpu" and not torch.is_grad_enabled()


def overheard(module: nn.Module) -> bool:
    """Whether somebody has hooked a module or a part of it, and waits for torch to call them."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, each) for part in module.modules() for each in hooks)
