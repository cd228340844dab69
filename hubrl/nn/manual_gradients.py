"""Gradients without autograd's bookkeeping: layers with a backward pass by formula, and packs.

The time of an operation on a few dozen numbers is that of its call. So small layers have their
derivatives written out, two products and a sum per layer, and during an update parameters whose
gradients are computed together can share one piece of memory: autograd, clipping and the optimizer
treat such a pack as one parameter.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch._utils
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.nn.tracing import is_tracing

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


def tanh(rows: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """`torch.tanh`, by numpy where possible: nine times faster on processors with AVX512."""
    if rows.requires_grad or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return torch.tanh(rows)
    return torch.from_numpy(np.tanh(rows.numpy()))


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
        outputs: list[Float[Tensor, "batch _"]],
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


class ParameterPack:
    """Parameters in one piece of memory; their modules read them as before.

    Args:
        members: Parameters of one dtype and device, in no other pack.
    """

    def __init__(self, members: Sequence[nn.Parameter]) -> None:
        self.members = list(members)
        self.flat = nn.Parameter(flatten([member.detach() for member in members]))
        """All members in a row `(numbers,)`: the parameter that has the gradient and is stepped."""
        for member, part in zip(self.members, self.split(self.flat.detach()), strict=True):
            member.data = part
            member.pack = self  # type: ignore[attr-defined]

    def block(self, members: Sequence[Tensor]) -> Tensor | None:
        """Consecutive members of the same trailing shape, stacked along axis 0 without a copy.

        Returns:
            A view `(rows of all members, *trailing)`, or None if they are not consecutive here.
        """
        place = {id(member): index for index, member in enumerate(self.members)}
        first = place.get(id(members[0]), -1)
        places = [place.get(id(member), -1) for member in members]
        if first < 0 or places != list(range(first, first + len(members))):
            return None
        start = sum(member.numel() for member in self.members[:first])
        end = start + sum(member.numel() for member in members)
        return self.flat.detach()[start:end].view(-1, *members[0].shape[1:])

    def split(self, flat: Tensor) -> list[Tensor]:
        """Each member's part, in its shape, of a tensor shaped as `flat`."""
        parts = flat.split([member.numel() for member in self.members])
        return [part.view_as(member) for part, member in zip(parts, self.members, strict=True)]

    def release(self) -> None:
        """Give each member memory of its own again, and its part of the last gradient."""
        flat = self.flat.grad
        gradients = [None] * len(self.members) if flat is None else self.split(flat)
        for member, gradient in zip(self.members, gradients, strict=True):
            member.data = member.detach().clone()
            member.grad = gradient
            del member.pack  # type: ignore[attr-defined]


class AutogradInputs:
    """Autograd inputs of a custom op: one flat tensor per pack, and every unpacked parameter.

    Args:
        parameters: All parameters of the op. Either all members of a pack get a gradient, or none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        packs: list[ParameterPack | None] = [getattr(each, "pack", None) for each in parameters]
        self.packs = list({id(pack): pack for pack in packs if pack is not None}.values())
        self.singles = [each for each, pack in zip(parameters, packs, strict=True) if pack is None]
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self._packed = [[places[id(member)] for member in pack.members] for pack in self.packs]
        self._single = [places[id(single)] for single in self.singles]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors to pass to `apply`: packs first, then single parameters."""
        return [*(pack.flat for pack in self.packs), *self.singles]

    def gradients(self, each: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of `tensors`, from those of all parameters in the order of construction."""
        if not self.packs:
            return list(each)
        packed = [_flat_gradient([each[place] for place in places]) for places in self._packed]
        return [*packed, *[each[place] for place in self._single]]


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Tensors in a row `(numbers of all,)`."""
    flat: Tensor = torch._utils._flatten_dense_tensors(list(parts))
    return flat


def _flat_gradient(each: Sequence[Tensor | None]) -> Tensor | None:
    gradients = [gradient for gradient in each if gradient is not None]
    assert len(gradients) in (0, len(each))
    return flatten(gradients) if gradients else None
