"""Small layers in numpy, without copies of their weights.

The time of an operation on a few dozen numbers is that of its call, and numpy's calls take a third
of torch's. The arrays share memory with the layers' parameters, and so follow every change in
place; `Watched` notices the other changes.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.nn.manual_gradients import NUMPY_ACTIVATIONS

Rows = Float[np.ndarray, "batch _"]


class NumpyLayers:
    """Linear layers and activations over arrays that share the parameters' memory.

    Args:
        layers: Linear layers with a bias, on the CPU, perhaps with an activation behind each.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._steps: list[tuple[np.ndarray, np.ndarray, Any]] = []
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
                self._steps.append((weight.T, bias, None))
            else:
                self._steps[-1] = (*self._steps[-1][:2], NUMPY_ACTIVATIONS[type(layer)])
        self.largest = max((kernel.size for kernel, _, _ in self._steps), default=0)
        """Weights of the largest layer."""

    def __call__(self, rows: Rows) -> Rows:
        """Output of the last layer; the rows themselves without layers."""
        for kernel, bias, activation in self._steps:
            rows = rows.dot(kernel)
            rows += bias
            if activation is not None:
                rows = activation(rows)
        return rows


class Watched:
    """Modules whose numbers are read elsewhere, to notice when what is read is out of date.

    Args:
        parts: Modules that are read.
        owners: Modules that hold some of those; their hooks do not matter.
    """

    def __init__(self, parts: Sequence[nn.Module], owners: Sequence[nn.Module] = ()) -> None:
        self._hooks = [
            hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)
        ]
        self._dicts: list[dict[str, Any]] = [
            members
            for part in [*parts, *owners]
            for members in (part._modules, part._parameters, part._buffers)
            if members
        ]
        self._members = self._list_members()
        self._tensors = [each for each in self._members if isinstance(each, Tensor)]
        self._addresses = [each.data_ptr() for each in self._tensors]

    @property
    def is_current(self) -> bool:
        """Whether no part was replaced or has a hook, and all numbers are where they were."""
        members = self._list_members()
        return (
            len(members) == len(self._members)
            and all(map(is_, members, self._members))
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and not any(self._hooks)
        )

    def _list_members(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._dicts)))
