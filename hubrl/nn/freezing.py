"""Frozen weights, out of reach of optimizers and SB3's initialisation, and copies of weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

SAMPLED_NUMBERS = 64
"""Numbers of each trained weight that are compared to see whether it changed."""


def is_sb3_init(fn: Any) -> bool:
    """Whether a function given to `apply` is SB3's orthogonal initialisation.

    SB3 applies it to the whole policy in `ActorCriticPolicy._build`.
    """
    return isinstance(fn, partial) and getattr(fn.func, "__name__", "") == "init_weights"


def freeze(module: nn.Module) -> None:
    """Turn every parameter into a buffer, which optimizers, clipping and Polyak averages skip."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach().clone())
    module.requires_grad_(False).eval()
    # SB3 averages every buffer named `running_` into the target network: a batch norm's is hidden.
    module.register_state_dict_post_hook(_hide_running)
    module.register_load_state_dict_pre_hook(_restore_running)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all weights of one network into another of the same shape; either may be frozen."""
    own = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        tensor.copy_(own[name])


def stored_name(names: Mapping[str, Tensor], name: str) -> str:
    """The spelling of a weight's name in a state dict: `freeze` writes `running_` as `fixed_`.

    Args:
        names: The state dict that is looked into.
        name: A weight's name, in either spelling; returned unchanged if neither is found.
    """
    spellings = (
        name,
        name.replace("running_", "fixed_"),
        name.replace("fixed_", "running_"),
    )
    return next((spelling for spelling in spellings if spelling in names), name)


class CachedParameters(nn.Module):
    """A policy whose list of parameters is made once instead of in every gradient step.

    SB3 lists them for each clipping of gradients; frozen sources have many modules to walk through
    and no parameters. The list is cached from when the optimizer exists, the last thing that SB3's
    policies build.
    """

    _parameter_list: list[nn.Parameter] | None = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""
        if not recurse or "optimizer" not in self.__dict__:
            return super().parameters(recurse)
        if self._parameter_list is None:
            self._parameter_list = list(super().parameters())
        return iter(self._parameter_list)

    def _apply(self, fn: Any, recurse: bool = True) -> "CachedParameters":
        self._parameter_list = None
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return cast("CachedParameters", moved)


def _hide_running(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and "running_" in name]:
        state[name.replace("running_", "fixed_")] = state.pop(name)


def _restore_running(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    buffers = module.named_buffers(remove_duplicate=False)  # extractors may be shared
    for name in {name for name, _ in buffers if "running_" in name}:
        hidden = prefix + name.replace("running_", "fixed_")
        if hidden in state:
            state[prefix + name] = state.pop(hidden)


class WeightCache:
    """Copies of weights in another form, made anew when the weights carry a gradient or changed."""

    def __init__(self) -> None:
        self._cached: tuple[tuple[Any, ...], list[Tensor]] = (), []

    def get(
        self,
        weights: Sequence[Tensor],
        make: Callable[[], list[Tensor]],
        *,
        frozen: bool = False,
    ) -> list[Tensor]:
        """The copies, by `make` if the cached ones are out of date.

        Args:
            weights: The weights that the copies depend on.
            make: Makes the copies.
            frozen: Whether all weights are frozen, hence changed by loading or moving alone,
                which changes all of them at once.
        """
        if not frozen and torch.is_grad_enabled() and any(each.requires_grad for each in weights):
            return make()
        watched = (weights[0], weights[-1]) if frozen else weights
        versions = tuple([(weight.data_ptr(), weight._version) for weight in watched])
        state = versions, b"" if frozen else _sample(weights)
        # One attribute for both: another thread may read them at any time.
        known, copies = self._cached
        if state != known:
            with torch.no_grad():
                copies = make()
            self._cached = state, copies
        return copies


def _sample(weights: Sequence[Tensor]) -> bytes:
    """A few numbers of each trained weight.

    SB3's Polyak average (`.data`) and fused optimizers write without counting up `_version`.
    """
    trained = [weight.detach().flatten() for weight in weights if isinstance(weight, nn.Parameter)]
    sampled = [weight[:: max(weight.numel() // SAMPLED_NUMBERS, 1)] for weight in trained]
    return torch.cat(sampled).cpu().numpy().tobytes() if sampled else b""
