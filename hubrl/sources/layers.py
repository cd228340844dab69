"""The layers of a source's network: what several sources need to be alike in to become one, and what one says on the way."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import SpaceMismatch
from hubrl.formats.cards import Declared
from hubrl.formats.spaces import describe, fits
from hubrl.sources.heads import GaussianAction, GreedyAction
from hubrl.sources.preprocessing import Normaliser, Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import Encoder, Reader, Trunks

Kernel = nn.Linear | nn.Conv2d
"""A layer that holds a kernel."""


def kernels(source: Source, *, head: bool) -> dict[str, Kernel]:
    """The layers of a source that hold kernels, by name, from observations to features or, with the head, to actions."""
    parts = {"encoder": source.encoder, **({"action": source.action} if head and source.action is not None else {})}
    return {
        f"{part}.{path}": layer
        for part, module in parts.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def check_alike(sources: Sequence[Source], why: str, *, head: bool) -> None:
    """Refuse sources whose networks differ, so that their layers cannot become one.

    Args:
        sources: At least one.
        why: Who asks, to begin the sentence: `Method 'soup' averages layers`.
        head: Whether their action heads have to be alike too.

    Raises:
        SpaceMismatch: Naming the layer of the source that differs.
    """
    for source in sources:
        more = _beside_kernels(source, head=head)
        if more:
            raise SpaceMismatch(
                f"{why}, and source {source.name!r} holds {more[0]} beside them; leave it out, or use method 'hub-pathway'."
            )
    first = sources[0]
    for other in sources[1:]:
        difference = _difference(first, other, head=head)
        if difference is not None:
            raise SpaceMismatch(f"{why}, and {difference}; leave it out, or use method 'hub-pathway'.")
    if head:
        for source in sources:
            if isinstance(source.action, GreedyAction):
                raise SpaceMismatch(
                    f"{why}, and source {source.name!r} acts by the greatest of its Q-values, which has no gradient; use level='features'."
                )


def _beside_kernels(source: Source, *, head: bool) -> list[str]:
    """What an encoder, or an action head, holds that is no layer's kernel or bias, nor the standard deviation of a Gaussian."""
    held = {f"{name}.{part}" for name in kernels(source, head=head) for part in ("weight", "bias")} | {"action.log_std"}
    parts = ("encoder.", "action.") if head else ("encoder.",)
    return [name for name in source.state_dict() if name.startswith(parts) and name not in held]


def _difference(first: Source, other: Source, *, head: bool) -> str | None:
    names = f"source {other.name!r}", f"{first.name!r}"
    if not fits(first.space, other.space):
        return f"{names[0]} reads {describe(other.space)} where {names[1]} reads {describe(first.space)}"
    for field in ("preprocessing", "normalize_images", "action_map"):
        if getattr(first.card, field) != getattr(other.card, field):
            return f"{names[0]} has another {field} than {names[1]}"
    own, others = kernels(first, head=head), kernels(other, head=head)
    for name in [*own, *others]:
        here, there = own.get(name), others.get(name)
        if here is None or there is None or str(here) != str(there):
            return f"{names[0]} has {there or 'nothing'} at layer {name} where {names[1]} has {here or 'nothing'}"
    if activations_of(first) != activations_of(other):
        return f"{names[0]} has activations {activations_of(other)} where {names[1]} has {activations_of(first)}"
    if head and _head_of(first) != _head_of(other):
        return f"{names[0]} has a {_head_of(other)} head where {names[1]} has a {_head_of(first)} one"
    return None


def activations_of(source: Source) -> list[str]:
    """The names of the modules of an encoder that hold no weights, in order."""
    return [
        type(module).__name__
        for module in source.encoder.modules()
        if not list(module.children()) and not list(module.parameters()) and not list(module.buffers())
    ]


def _head_of(source: Source) -> str:
    network = source.card.network
    if isinstance(network, Declared) and network.action is not None:
        return network.action.kind
    return type(source.action).__name__


def merged(sources: Sequence[Source], name: str, why: str, layer_of: Callable[[str, list[Kernel]], nn.Module], *, head: bool) -> Source:
    """One source to be trained, each of whose layers is made of the layers of several sources that are alike.

    Where sources normalise their observations differently, it normalises as the first does and their first layers are
    rewritten for that; this is exact where nothing is clipped.

    Args:
        sources: The sources.
        name: What to call the new one.
        why: Who asks, see `check_alike`.
        layer_of: Makes one layer of the layers of a name.
        head: Whether the action head is made of theirs too; otherwise there is none.

    Raises:
        SpaceMismatch: If they are not alike.
    """
    check_alike(sources, why, head=head)
    one = copy.deepcopy(sources[0])
    one.card = one.card.model_copy(update={"name": name, "sha256": None})
    one.frozen, one.critic = False, None
    one.arrived = all(source.arrived for source in sources)
    if not head:
        one.action = one.actions = None
    by_source = [_first_rewritten(source, sources[0], why, head=head) for source in sources]
    for path in by_source[0]:
        parent, _, leaf = path.rpartition(".")
        setattr(one.get_submodule(parent), leaf, layer_of(path, [layers[path] for layers in by_source]))
    spreads = [source.action.log_std for source in sources if isinstance(source.action, GaussianAction)]
    if isinstance(one.action, GaussianAction) and isinstance(one.action.log_std, nn.Parameter | Tensor):
        spread = torch.stack([spread.detach() for spread in spreads if isinstance(spread, Tensor)]).mean(dim=0)
        one.action.log_std = owned(spread, by_source[0]["action.mean"])
    return one


def _first_rewritten(source: Source, first: Source, why: str, *, head: bool) -> dict[str, Kernel]:
    """A source's layers, the first of them for observations as another source normalises them."""
    layers = kernels(source, head=head)
    if source is first or not source.arrived or not first.arrived or (source.normaliser is None and first.normaliser is None):
        return layers
    name, layer = next(iter(layers.items()))
    flat = len(source.space.shape or ()) == 1 and isinstance(layer, nn.Linear)
    if not flat:
        raise SpaceMismatch(f"{why}, and source {source.name!r} normalises its {describe(source.space)}; only flat observations can be.")
    (mean, std), (of_mean, of_std) = _statistics(source.normaliser, layer), _statistics(first.normaliser, layer)
    rewritten = copy.deepcopy(layer)
    weight = layer.weight.double()
    assert rewritten.bias is not None
    with torch.no_grad():
        rewritten.weight.copy_(weight * (of_std / std))
        rewritten.bias.add_(weight @ ((of_mean - mean) / std))
    return {**layers, name: rewritten}


def _statistics(normaliser: Normaliser | None, layer: Kernel) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a flat observation is normalised by."""
    if normaliser is None:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return normaliser.get_buffer("mean_0"), (normaliser.get_buffer("var_0") + normaliser.how.epsilon).sqrt()


def depth(source: Source, why: str) -> list[tuple[Kernel, nn.Module]]:
    """The layers of a source's encoder, each with the activation behind it.

    Raises:
        SpaceMismatch: If the encoder is not a chain of layers.
    """
    encoder = source.encoder
    readers = list(encoder.trunks.readers) if isinstance(encoder, Encoder) and isinstance(encoder.trunks, Trunks) else []
    if len(readers) != 1 or not isinstance(encoder, Encoder):
        raise SpaceMismatch(f"{why}, and source {source.name!r} is not one; leave it out.")
    reader = cast("Reader", readers[0])
    modules: list[Any] = [*reader.convs.children(), *reader.linear.children(), *encoder.hidden.children()]
    return list(zip(modules[::2], modules[1::2], strict=True))


def said_on_the_way(source: Source, observations: Observations, why: str) -> Iterator[Float[Tensor, " batch *layer"]]:
    """What every layer of a source says, behind its activation, from the first to the last."""
    read = source.read(observations)
    assert isinstance(read, Tensor)
    flat = False
    for layer, activation in depth(source, why):
        if isinstance(layer, nn.Linear) and not flat:
            read, flat = read.flatten(1), True
        read = activation(layer(read))
        yield read


def stacked(layers: Sequence[Kernel], part: str) -> Tensor:
    """The kernels, or the biases, of several layers."""
    return torch.stack([getattr(layer, part).detach() for layer in layers])


def owned(value: Tensor, like: Kernel) -> nn.Parameter:
    """A parameter that learns at the rate at which a source's layer does."""
    parameter = nn.Parameter(value)
    if hasattr(like.weight, "lr_scale"):
        parameter.lr_scale = like.weight.lr_scale  # type: ignore[attr-defined]
    return parameter
