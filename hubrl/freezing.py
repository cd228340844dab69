"""Keeping pretrained weights out of reach: of optimizers, of Polyak averages, of SB3's initialisation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

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
