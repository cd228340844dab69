"""Progressive Networks: a new column beside frozen ones, which it hears at every layer."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways
from hubrl.routing.source_pathway import SourcePathway
from hubrl.routing.target import Target
from hubrl.sources.layers import Kernel, encoder_layers, layer_outputs
from hubrl.sources.preprocessing import Observations, apply_steps
from hubrl.sources.source import Source

WHY = "Method 'progressive' hears chains of layers"

FIRST_SCALE = 0.1
"""Where an adapter's scale of a column starts; the paper says a small random value."""


class Adapter(nn.Module):
    """A lateral connection: `act(V [alpha_j h_j])`, by 1x1 convolutions where the columns are images (Rusu et al. 2016, eq. 2)."""

    def __init__(self, heard: list[int], width: int, activation: nn.Module, *, image: bool) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.full((len(heard),), FIRST_SCALE))
        self.squeeze: nn.Module = nn.Conv2d(sum(heard), width, 1) if image else nn.Linear(sum(heard), width)
        self.activation = activation

    def forward(self, heard: Sequence[Float[Tensor, " batch ..."]]) -> Float[Tensor, " batch *squeezed"]:
        """What the new column hears of the others' layer."""
        scaled = torch.cat([scale * column for scale, column in zip(self.scales, heard, strict=True)], dim=1)
        adapted: Tensor = self.activation(self.squeeze(scaled))
        return adapted


@register("progressive")
class Progressive(Method):
    """One new column among frozen ones, with lateral connections from all of them into every layer (Rusu et al. 2016).

    `h_i = act(W_i h_{i-1} + U_i act(V_i [alpha_j h_{i-1}^j]))` (eq. 2), where `j` runs over every source, the first too. The
    new column has the layers of the first source; its features are its last layer beside the adapter of the sources' last
    layers, so that the head hears them as in the paper. Departures: scales start at 0.1, not at random; the activation is the
    column's own; value and action head read one column.

    Args:
        sources: The frozen columns, in order; chains of layers of one depth, and for images of one geometry.
        target: What they have to fit.
    """

    summary = "a new column with lateral connections from frozen ones (Rusu et al. 2016)"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True

    def __init__(self, sources: Sequence[Source], target: Target) -> None:
        if not sources:
            raise BadConfig("Method 'progressive' needs a column; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=False, project=False))
        columns = [encoder_layers(source, WHY) for source in sources]
        _check_columns(sources, columns)
        layers = columns[0]
        self.column = nn.ModuleList(_new(layer) for layer, _ in layers)
        self.activations = nn.ModuleList(type(activation)() for _, activation in layers)
        widths = [[_width(column[index][0]) for column in columns] for index in range(len(layers))]
        images = [isinstance(layer, nn.Conv2d) for layer, _ in layers]
        self.adapters = nn.ModuleList(
            Adapter(widths[index], _width(layers[index][0]), type(layers[index][1])(), image=images[index]) for index in range(len(layers))
        )
        # Into the next layer of the column; the last adapter goes to the head.
        self.laterals = nn.ModuleList(_new(layer, bias=False) for layer, _ in layers[1:])
        self.features_dim = 2 * _width(layers[-1][0])

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """The new column's last layer, and what the head hears of the others'."""
        pathways = [cast("SourcePathway", pathway) for pathway in self.pathways.sources]
        with torch.no_grad():
            said = [list(layer_outputs(path.source, path.original(observations), WHY)) for path in pathways]
        read = apply_steps(pathways[0].original(observations), pathways[0].source.card.preprocessing)
        assert isinstance(read, Tensor)
        heard: Tensor | None = None
        for index, (layer, activation) in enumerate(zip(self.column, self.activations, strict=True)):
            before = layer(_shaped(read, layer))
            if heard is not None:
                lateral = self.laterals[index - 1]
                before = before + lateral(_shaped(heard, lateral))
            read = activation(before)
            heard = self.adapters[index]([column[index] for column in said])
        assert heard is not None
        features = torch.cat([read.flatten(1), heard.flatten(1)], dim=1)
        return Routed(features, features.new_zeros(()))

    def measures(self) -> dict[str, float]:
        """The scale at which each layer hears each column."""
        return {
            f"progressive/scale/{index}/{name}": scale.item()
            for index, adapter in enumerate(self.adapters)
            for name, scale in zip(self.pathways.names, cast("Adapter", adapter).scales, strict=True)
        }


def _check_columns(sources: Sequence[Source], columns: Sequence[list[tuple[Kernel, nn.Module]]]) -> None:
    """Refuse columns of another depth, or of another geometry, than the first.

    Raises:
        SpaceMismatch: Naming the source and the layer.
    """
    first = columns[0]
    if not first or isinstance(first[-1][0], nn.Conv2d):
        raise SpaceMismatch(f"{WHY} that end in a linear one, and source {sources[0].name!r} has none; leave it out.")
    for source, column in zip(sources[1:], columns[1:], strict=True):
        if len(column) != len(first):
            raise SpaceMismatch(
                f"{WHY} of one depth, and source {source.name!r} has {len(column)} layers where {sources[0].name!r} has {len(first)}; "
                "leave it out."
            )
        for index, ((layer, _), (own, _)) in enumerate(zip(column, first, strict=True)):
            if _geometry(layer) != _geometry(own):
                raise SpaceMismatch(
                    f"{WHY} of one geometry, and source {source.name!r} has {layer} at layer {index} where {sources[0].name!r} has {own}."
                )


def _geometry(layer: Kernel) -> tuple[object, ...]:
    return (layer.kernel_size, layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else ()


def _width(layer: Kernel) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _new(layer: Kernel, *, bias: bool = True) -> nn.Module:
    """A new layer of the shape of another."""
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=bias)  # type: ignore[arg-type]
    return nn.Linear(layer.in_features, layer.out_features, bias=bias)


def _shaped(read: Tensor, layer: nn.Module) -> Tensor:
    """Flat, where a linear layer follows."""
    return read.flatten(1) if isinstance(layer, nn.Linear) else read
