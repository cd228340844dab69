"""The control: one source, and nobody else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


class Alone(Method):
    """One source speaks, and has all the say."""

    takes_heard = True

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """What the one source says."""
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        all_say = torch.zeros(len(rows), 1, device=rows.device)
        speech = self.pathways.speak(observations, all_say == 0)
        return Routed(speech[:, 0], speech.new_zeros(()), speech, all_say)


@register("single")
class Single(Alone):
    """One source has all the say.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        source: The name of the one; needed where there are several.
        width: Width of the features; the source's if not given.
    """

    summary = "one source alone, frozen unless tuned, with a residual at the outputs: a control"

    def __init__(self, sources: Sequence[Source], target: Target, *, source: str | None = None, width: int | None = None) -> None:
        one = the_one(sources, source, "single")
        super().__init__(Pathways([one], target, fresh=False, width=width or one.width))


def the_one(sources: Sequence[Source], name: str | None, method: str) -> Source:
    """The source of a name, or the only one.

    Raises:
        BadConfig: If there are several and none is named.
        UnknownName: If there is none of the name.
    """
    by_name = {member.name: member for member in sources}
    if name is None and len(by_name) == 1:
        name = next(iter(by_name))
    if name is None:
        raise BadConfig(f"Method {method!r} needs source=..., one of {', '.join(by_name)}.")
    if name not in by_name:
        raise UnknownName(unknown("source", name, by_name))
    return by_name[name]
