"""Keeping pretrained weights out of reach: of optimizers, of Polyak averages, of SB3's initialisation."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_sb3_init(fn: Any) -> bool:
    """Whether a function handed to `apply` is SB3's orthogonal initialisation (`ActorCriticPolicy._build`)."""
    return isinstance(fn, partial) and getattr(fn.func, "__name__", "") == "init_weights"


def freeze(module: nn.Module) -> None:
    """Turn every parameter into a buffer: bit for bit out of reach of optimizers, clipping and Polyak averages."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach().clone())
    module.requires_grad_(False).eval()
    # SB3 copies every buffer named `running_` to the target network, in place and averaged: hide a batch norm's.
    module.register_state_dict_post_hook(_hide_running)
    module.register_load_state_dict_pre_hook(_restore_running)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give one network the weights of another, frozen or not."""
    own = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        tensor.copy_(own[name])


class ParametersOnce(nn.Module):
    """A policy that looks for its parameters once: SB3 asks for them in every gradient step, and frozen sources have many parts and none.

    It asks again until its optimizer, which SB3's policies make last, is there.
    """

    _found: list[nn.Parameter] | None = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""
        if not recurse or "optimizer" not in self.__dict__:
            return super().parameters(recurse)
        if self._found is None:
            self._found = list(super().parameters())
        return iter(self._found)

    def _apply(self, fn: Any, recurse: bool = True) -> "ParametersOnce":
        self._found = None
        return cast("ParametersOnce", super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


def _hide_running(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and "running_" in name]:
        state[name.replace("running_", "fixed_")] = state.pop(name)


def spelt_as_in(own: Mapping[str, Tensor], name: str) -> str:
    """A weight's name as a source has it: frozen ones hide `running_`, tuned ones and SB3's zips do not."""
    spellings = (name, name.replace("running_", "fixed_"), name.replace("fixed_", "running_"))
    return next((spelling for spelling in spellings if spelling in own), name)


def _restore_running(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    names = {name for name, _ in module.named_buffers() if "running_" in name}
    for name in names:
        hidden = prefix + name.replace("running_", "fixed_")
        if hidden in state:
            state[prefix + name] = state.pop(hidden)
