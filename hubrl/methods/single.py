"""The control of one source."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.routing.weights import device_of, n_rows
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


class OnePathway(Method):
    """A method of one pathway, whose weight is always one."""

    @property
    def reads_bytes(self) -> bool:
        """Whether uint8 images may be given undivided, for the same result."""
        return self.pathways.reads_bytes

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Output of the one pathway."""
        log_weights = torch.zeros(n_rows(observations), 1, device=device_of(observations))
        outputs = self.pathways.compute_outputs(
            observations, log_weights == 0, fresh, source_outputs
        )
        return Routed(outputs[:, 0], outputs.new_zeros(()), outputs, log_weights)


class SingleSource(OnePathway):
    """A method whose only pathway is a source."""

    needs_only_features = True


@register("single")
class Single(SingleSource):
    """One source, frozen unless tuned.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        source: Name of the one source; needed where there are several.
        width: Width of the features; by default the source's.
    """

    summary = "one source alone, frozen unless tuned, with a residual at the outputs: a control"

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        source: str | None = None,
        width: int | None = None,
    ) -> None:
        one = select_source(sources, source, "single")
        super().__init__(Pathways([one], target, fresh=False, width=width or one.width))


def select_source(sources: Sequence[Source], name: str | None, method: str) -> Source:
    """The source of a name, or the only one.

    Raises:
        BadConfig: If there are several and no name is given.
        UnknownName: If there is none of the name.
    """
    by_name = {source.name: source for source in sources}
    if name is None and len(by_name) == 1:
        name = next(iter(by_name))
    if name is None:
        raise BadConfig(f"Method {method!r} needs source=..., one of {', '.join(by_name)}.")
    if name not in by_name:
        raise UnknownName(unknown("source", name, by_name))
    return by_name[name]
