"""Progressive Networks: a new column with lateral connections from frozen ones."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.source_pathway import SourcePathway
from hubrl.routing.target import TargetSpec
from hubrl.sources.layers import Kernel, encoder_layers, layer_outputs
from hubrl.sources.preprocessing import Observations, apply_steps
from hubrl.sources.source import Source

REASON = "Method 'progressive' reads chains of layers"

INITIAL_SCALE = 0.1
"""Initial scale of a column in an adapter; the paper has a small random value."""


class Adapter(nn.Module):
    """A lateral connection `act(V [alpha_j h_j])`, by 1x1 convolutions for images (eq. 2).

    Args:
        columns: Width of each frozen column's layer.
        width: Width of the result.
        activation: Activation of the result.
        image: Whether the layers are convolutions.
    """

    def __init__(
        self, columns: list[int], width: int, activation: nn.Module, *, image: bool
    ) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.full((len(columns),), INITIAL_SCALE))
        self.squeeze: nn.Module = (
            nn.Conv2d(sum(columns), width, 1) if image else nn.Linear(sum(columns), width)
        )
        self.activation = activation

    def forward(
        self, hidden: Sequence[Float[Tensor, " batch ..."]]
    ) -> Float[Tensor, " batch *squeezed"]:
        """Input of the new column from one layer of the frozen ones."""
        columns = zip(self.scales, hidden, strict=True)
        scaled = torch.cat([scale * column for scale, column in columns], dim=1)
        adapted: Tensor = self.activation(self.squeeze(scaled))
        return adapted


@register("progressive")
class Progressive(Method):
    """A new column with lateral connections from frozen ones into every layer (Rusu et al. 2016).

    `h_i = act(W_i h_{i-1} + U_i act(V_i [alpha_j h_{i-1}^j]))` (eq. 2), where `j` runs over the
    sources. The new column has the layers of the first source; its features are its last layer
    beside the adapter of the sources' last layers, so that the head reads them as in the paper.
    Departures: scales start at 0.1, not at random; the activation is the column's own; value and
    action head read one column.

    Args:
        sources: The frozen columns, in order; chains of layers of one depth, and for images of one
            geometry.
        target: The target's spaces and level.
    """

    summary = "a new column with lateral connections from frozen ones (Rusu et al. 2016)"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True

    def __init__(self, sources: Sequence[Source], target: TargetSpec) -> None:
        if not sources:
            raise BadConfig("Method 'progressive' needs a column; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=False, project=False))
        columns = [encoder_layers(source, REASON) for source in sources]
        _check_columns(sources, columns)
        layers = columns[0]
        self.column = nn.ModuleList(_new_layer(layer) for layer, _ in layers)
        self.activations = nn.ModuleList(type(activation)() for _, activation in layers)
        self.adapters = nn.ModuleList(
            Adapter(
                [_width(column[index][0]) for column in columns],
                _width(layer),
                type(activation)(),
                image=isinstance(layer, nn.Conv2d),
            )
            for index, (layer, activation) in enumerate(layers)
        )
        # Into the next layer of the column; the last adapter goes to the head.
        self.laterals = nn.ModuleList(_new_layer(layer, bias=False) for layer, _ in layers[1:])
        self.features_dim = 2 * _width(layers[-1][0])

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Last layer of the new column beside the last adapter."""
        pathways = [cast("SourcePathway", pathway) for pathway in self.pathways.sources]
        raw = self.pathways.denormalize(observations)
        with torch.no_grad():
            frozen = [list(layer_outputs(path.source, raw, REASON)) for path in pathways]
        hidden = apply_steps(raw, pathways[0].source.card.preprocessing)
        assert isinstance(hidden, Tensor)
        adapted: Tensor | None = None
        each = zip(self.column, self.activations, strict=True)
        for index, (layer, activation) in enumerate(each):
            inputs = layer(_flat_for(layer, hidden))
            if adapted is not None:
                lateral = self.laterals[index - 1]
                inputs = inputs + lateral(_flat_for(lateral, adapted))
            hidden = activation(inputs)
            adapted = self.adapters[index]([column[index] for column in frozen])
        assert adapted is not None
        features = torch.cat([hidden.flatten(1), adapted.flatten(1)], dim=1)
        return Routed(features, features.new_zeros(()))

    def measures(self) -> dict[str, float]:
        """Scale of each column in each layer's adapter."""
        return {
            f"progressive/scale/{index}/{name}": scale.item()
            for index, adapter in enumerate(self.adapters)
            for name, scale in zip(
                self.pathways.names, cast("Adapter", adapter).scales, strict=True
            )
        }


def _check_columns(
    sources: Sequence[Source], columns: Sequence[list[tuple[Kernel, nn.Module]]]
) -> None:
    """Refuse columns of another depth, or of another geometry, than the first.

    Raises:
        SpaceMismatch: With the source and the layer.
    """
    first, name = columns[0], sources[0].name
    if not first or isinstance(first[-1][0], nn.Conv2d):
        raise SpaceMismatch(
            f"{REASON} that end in a linear one, and source {name!r} has none; leave it out."
        )
    for source, column in zip(sources[1:], columns[1:], strict=True):
        if len(column) != len(first):
            raise SpaceMismatch(
                f"{REASON} of one depth, and source {source.name!r} has {len(column)} layers where "
                f"{name!r} has {len(first)}; leave it out."
            )
        for index, ((layer, _), (own, _)) in enumerate(zip(column, first, strict=True)):
            if _geometry(layer) != _geometry(own):
                raise SpaceMismatch(
                    f"{REASON} of one geometry, and source {source.name!r} has {layer} at layer "
                    f"{index} where {name!r} has {own}."
                )


def _geometry(layer: Kernel) -> tuple[object, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size, layer.stride, layer.padding
    return ()


def _width(layer: Kernel) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _new_layer(like: Kernel, *, bias: bool = True) -> nn.Module:
    """A new layer of the shape of another."""
    if isinstance(like, nn.Conv2d):
        channels = like.in_channels, like.out_channels
        geometry = like.kernel_size, like.stride, like.padding
        return nn.Conv2d(*channels, *geometry, bias=bias)  # type: ignore[arg-type]
    return nn.Linear(like.in_features, like.out_features, bias=bias)


def _flat_for(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Input of a layer: flat for a linear one."""
    return hidden.flatten(1) if isinstance(layer, nn.Linear) else hidden
