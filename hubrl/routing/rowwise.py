"""Sources that serve a few rows each, by gathered weights in place of a pass of their own."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hubrl.routing.source_pathway import SourcePathway
from hubrl.sources.batched import BatchedSources
from hubrl.sources.preprocessing import Observations

MOST_ROWS = 8
"""Rows of a source, on average, up to which gathering its weights once a row takes less time than a
pass of its own."""

MOST_NUMBERS = 2**22
"""Weights that are gathered at once, at most: 16 MiB, and as much memory for a moment."""


class RowwiseSources:
    """Outputs of the pathways of frozen sources that are alike, each row by a source of its own.

    Args:
        pathways: The sources' pathways.
    """

    def __init__(self, pathways: Sequence[SourcePathway]) -> None:
        self.pathways = list(pathways)
        self.first = self.pathways[0].source
        """The first source: all are replaced at once when the model moves to another device."""
        target = self.pathways[0].target
        self._of_outputs = target.level == "outputs"
        sources = [pathway.source for pathway in self.pathways]
        batched = BatchedSources(sources, target.precision)
        group = None if target.action_meanings is not None else batched.gatherable(target.level)
        self._group = group

    def serves(self, n_rows: int, n_selected: int) -> bool:
        """Whether rows are best computed so.

        Args:
            n_rows: Number of rows.
            n_selected: Number of different sources among them.
        """
        few = n_selected > 1 and n_rows <= MOST_ROWS * n_selected
        return few and self._group is not None and n_rows * self._group.numbers <= MOST_NUMBERS

    def __call__(
        self, observations: Observations, member: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows width"]:
        """Output of each row's pathway.

        Args:
            observations: As SB3 preprocesses them.
            member: Position of each row's source.
        """
        assert self._group is not None
        with torch.no_grad():
            raw = self.pathways[0].denormalizer(observations)
            own = self._group.of_rows(raw, member, outputs=self._of_outputs)
        used, place = member.unique(return_inverse=True)
        pathways = [self.pathways[index] for index in used.tolist()]
        if pathways[0].projection is not None:
            layers = [cast("nn.Linear", pathway.projection) for pathway in pathways]
            weight = torch.stack([layer.weight for layer in layers])[place]
            bias = torch.stack([layer.bias for layer in layers])[place]
            return torch.baddbmm(bias[:, :, None], weight, own[:, :, None]).squeeze(2)
        if pathways[0].log_std is None:
            return own
        stds = torch.stack([cast("Tensor", pathway.log_std) for pathway in pathways])
        return torch.cat([own.chunk(2, dim=1)[0], stds[place]], dim=1)
