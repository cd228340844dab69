"""Layers of sources' networks: comparison, merging into one network, and their outputs."""

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
    """A source's layers with kernels by name, from observations to features or actions.

    Args:
        source: The source.
        head: Whether the action head's layers are included.
    """
    parts = {"encoder": source.encoder}
    if head and source.action is not None:
        parts["action"] = source.action
    return {
        f"{part}.{path}": layer
        for part, module in parts.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def check_same_layers(sources: Sequence[Source], why: str, *, head: bool) -> None:
    """Refuse sources whose networks differ, so that their layers cannot become one.

    Args:
        sources: At least one.
        why: Beginning of the sentence: `Method 'soup' averages layers`.
        head: Whether their action heads have to be the same too.

    Raises:
        SpaceMismatch: If a layer differs, with its name.
    """
    problem = next(_problems(sources, head=head), None)
    if problem is not None:
        raise SpaceMismatch(f"{why}, and {problem}.")


def _problems(sources: Sequence[Source], *, head: bool) -> Iterator[str]:
    first, remedy = sources[0], "leave it out, or use method 'hub-pathway'"
    for source in sources:
        for name in _beside_kernels(source, head=head):
            yield f"source {source.name!r} holds {name} beside them; {remedy}"
    for other in sources[1:]:
        difference = _difference(first, other, head=head)
        if difference is not None:
            yield f"{difference}; {remedy}"
    for source in sources:
        if head and isinstance(source.action, GreedyAction):
            yield (
                f"source {source.name!r} acts by the greatest of its Q-values, "
                "which has no gradient; use level='features'"
            )


def _beside_kernels(source: Source, *, head: bool) -> list[str]:
    """Weights that are no layer's kernel or bias, nor a Gaussian's standard deviation."""
    layers = kernels(source, head=head)
    known = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    parts = ("encoder.", "action.") if head else ("encoder.",)
    names = (name for name in source.state_dict() if name.startswith(parts))
    return [name for name in names if name not in known | {"action.log_std"}]


def _difference(first: Source, other: Source, *, head: bool) -> str | None:
    name, model = f"source {other.name!r}", repr(first.name)
    if not fits(first.space, other.space):
        spaces_read = describe(other.space), describe(first.space)
        return f"{name} reads {spaces_read[0]} where {model} reads {spaces_read[1]}"
    for field in ("preprocessing", "normalize_images", "action_map"):
        if getattr(first.card, field) != getattr(other.card, field):
            return f"{name} has another {field} than {model}"
    own, others = kernels(first, head=head), kernels(other, head=head)
    for layer in [*own, *others]:
        here, there = own.get(layer), others.get(layer)
        if here is None or there is None or str(here) != str(there):
            both = there or "nothing", here or "nothing"
            return f"{name} has {both[0]} at layer {layer} where {model} has {both[1]}"
    if activations_of(first) != activations_of(other):
        names = activations_of(other), activations_of(first)
        return f"{name} has activations {names[0]} where {model} has {names[1]}"
    if head and _head_of(first) != _head_of(other):
        return f"{name} has a {_head_of(other)} head where {model} has a {_head_of(first)} one"
    return None


def activations_of(source: Source) -> list[str]:
    """Class names of the modules of an encoder that hold no weights, in order."""
    return [
        type(module).__name__
        for module in source.encoder.modules()
        if not any((list(module.children()), list(module.parameters()), list(module.buffers())))
    ]


def _head_of(source: Source) -> str:
    network = source.card.network
    if isinstance(network, Declared) and network.action is not None:
        return network.action.kind
    return type(source.action).__name__


def merge_layers(
    sources: Sequence[Source],
    name: str,
    why: str,
    merge: Callable[[str, list[Kernel]], nn.Module],
    *,
    head: bool,
) -> Source:
    """One trainable source, each layer of it merged from the same layer of several sources.

    Where sources normalise observations differently, it normalises as the first does, and the
    first layers of the others are rewritten for that; this is exact where nothing is clipped.

    Args:
        sources: The sources.
        name: Name of the result.
        why: Beginning of a sentence of refusal, see `check_same_layers`.
        merge: Makes one layer from its name and the sources' layers of that name.
        head: Whether the action head is merged too; otherwise the result has none.

    Raises:
        SpaceMismatch: If the networks differ.
    """
    check_same_layers(sources, why, head=head)
    one = copy.deepcopy(sources[0])
    one.card = one.card.model_copy(update={"name": name, "sha256": None})
    one.frozen, one.critic = False, None
    one.weights_loaded = all(source.weights_loaded for source in sources)
    if not head:
        one.action = one.actions = None
    by_source = [_kernels_normalised(source, sources[0], why, head=head) for source in sources]
    for path in by_source[0]:
        parent, _, leaf = path.rpartition(".")
        layer = merge(path, [layers[path] for layers in by_source])
        setattr(one.get_submodule(parent), leaf, layer)
    if isinstance(one.action, GaussianAction) and isinstance(one.action.log_std, Tensor):
        heads = [source.action for source in sources if isinstance(source.action, GaussianAction)]
        stds = [head.log_std.detach() for head in heads if isinstance(head.log_std, Tensor)]
        mean = torch.stack(stds).mean(dim=0)
        one.action.log_std = parameter_like(mean, by_source[0]["action.mean"])
    return one


def _kernels_normalised(
    source: Source, first: Source, why: str, *, head: bool
) -> dict[str, Kernel]:
    """A source's layers, for observations normalised as another source normalises them."""
    layers = kernels(source, head=head)
    loaded = source.weights_loaded and first.weights_loaded
    normalised = source.normaliser is not None or first.normaliser is not None
    if source is first or not loaded or not normalised:
        return layers
    name, layer = next(iter(layers.items()))
    if len(source.space.shape or ()) != 1 or not isinstance(layer, nn.Linear):
        raise SpaceMismatch(
            f"{why}, and source {source.name!r} normalises its {describe(source.space)}; "
            "only flat observations can be."
        )
    (mean, std), (new_mean, new_std) = _moments(source.normaliser), _moments(first.normaliser)
    rewritten = copy.deepcopy(layer)
    weight = layer.weight.double()
    with torch.no_grad():
        rewritten.weight.copy_(weight * (new_std / std))
        rewritten.bias.add_(weight @ ((new_mean - mean) / std))
    return {**layers, name: rewritten}


def _moments(normaliser: Normaliser | None) -> tuple[Tensor, Tensor]:
    if normaliser is None:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return normaliser.moments()


def encoder_layers(source: Source, why: str) -> list[tuple[Kernel, nn.Module]]:
    """The layers of a source's encoder, each with the activation behind it.

    Raises:
        SpaceMismatch: If the encoder is not a chain of layers.
    """
    encoder = source.encoder
    trunks = encoder.trunks if isinstance(encoder, Encoder) else None
    readers = list(trunks.readers) if isinstance(trunks, Trunks) else []
    if len(readers) != 1:
        raise SpaceMismatch(f"{why}, and source {source.name!r} is not one; leave it out.")
    parts = [cast("Reader", readers[0]).convs, cast("Reader", readers[0]).linear, encoder.hidden]
    modules: list[Any] = [module for part in parts for module in cast("nn.Module", part).children()]
    return list(zip(modules[::2], modules[1::2], strict=True))


def layer_outputs(
    source: Source, observations: Observations, why: str
) -> Iterator[Float[Tensor, " batch *layer"]]:
    """The output of every layer of a source behind its activation, from the first to the last."""
    rows = source.preprocess(observations)
    assert isinstance(rows, Tensor)
    flat = False
    for layer, activation in encoder_layers(source, why):
        if isinstance(layer, nn.Linear) and not flat:
            rows, flat = rows.flatten(1), True
        rows = activation(layer(rows))
        yield rows


def stack_layers(layers: Sequence[Kernel], part: str) -> Tensor:
    """The kernels (`weight`) or biases (`bias`) of several layers, stacked along a new axis 0."""
    return torch.stack([getattr(layer, part).detach() for layer in layers])


def parameter_like(value: Tensor, like: Kernel) -> nn.Parameter:
    """A parameter with the learning rate of a source's layer."""
    parameter = nn.Parameter(value)
    if hasattr(like.weight, "lr_scale"):
        parameter.lr_scale = like.weight.lr_scale  # type: ignore[attr-defined]
    return parameter
