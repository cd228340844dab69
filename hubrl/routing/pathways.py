"""The members of routing: sources in the hub's order, then perhaps a fresh pathway."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.formats.hub_spec import HubSpec
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.routing.fused import Aggregated, aggregated
from hubrl.routing.router import Router
from hubrl.routing.source_pathway import SourcePathway, told
from hubrl.routing.target import Target, check_fit
from hubrl.routing.weights import dispatch, places
from hubrl.sources import action_params, shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.preprocessing import Observations, Statistics
from hubrl.sources.source import Source

FRESH = "fresh"

WIDEST = 128
"""Width to which features are projected at most, unless told otherwise: the layer that SB3 puts behind them has 64 units."""


class Pathways(nn.Module):
    """The members of routing.

    At the level of features every source is projected to a common width, unless told otherwise, and a fresh pathway is a
    network of its own.
    At the level of outputs the fresh pathway is the target's own actor, which the policy computes and hands in.

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        fresh: Whether a fresh pathway is the last member.
        width: Width of the features; the widest source's if not given, but at most `WIDEST`. Without meaning at the level of outputs.
        project: Whether features are projected to the width; otherwise each pathway says its own.

    Raises:
        SpaceMismatch: If a source does not fit the target.
        BadConfig: If there is no member.
    """

    def __init__(self, sources: Sequence[Source], target: Target, *, fresh: bool, width: int | None = None, project: bool = True) -> None:
        super().__init__()
        if not sources and not fresh:
            raise BadConfig("A hub without sources was given; expected at least one source.")
        for source in sources:
            check_fit(source, target)
        self.target = target
        self.names = [source.name for source in sources] + [FRESH] * fresh
        if target.level == "outputs":
            assert target.action_space is not None
            self.width = action_params.width(target.action_space)
        else:
            widest = max((source.width for source in sources), default=64)
            self.width = width or (min(widest, WIDEST) if project else widest)
        self.sources = nn.ModuleList(SourcePathway(source, target, self.width if project else None) for source in sources)
        self.fresh = (
            FreshPathway(target.observation_space, self.width, precision=target.precision) if fresh and target.level == "features" else None
        )
        fresh_reads_bytes = self.fresh is None or isinstance(self.fresh.reader, BF16NatureCNN)
        self.reads_bytes = fresh_reads_bytes and BatchedSources(sources, target.precision).reads_bytes
        """Whether images may be given as the bytes they are, for the same words."""
        self._heard: Tensor | None = None
        self._encoders: BatchedSources | None = None

    def listen(self, observations: Observations, wanted: Sequence[bool]) -> Float[Tensor, "batch sources said"]:
        """What the wanted sources themselves say, to be remembered; zeros for the others.

        Args:
            observations: As SB3 preprocesses them.
            wanted: For every pathway, whether it may speak at all.
        """
        n_rows = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        members = [index for index in range(len(self.sources)) if wanted[index]]
        with torch.no_grad():
            said = self._listened(members, observations)
            if len(said) < len(self.sources):
                spoken = dict(zip(members, said, strict=True))
                silence = torch.zeros(n_rows, self.width, device=said[0].device if said else None)
                said = [spoken.get(index, silence) for index in range(len(self.sources))]
            return torch.stack(said, dim=1)

    def _listened(self, members: list[int], observations: Observations) -> list[Tensor]:
        """What some sources themselves say of all observations, computed together."""
        if not members:
            return []
        everybody: list[Any] = list(self.sources)
        pathways: list[SourcePathway] = everybody if len(members) == len(everybody) else [everybody[index] for index in members]
        sources = [pathway.source for pathway in pathways]
        if self._encoders is None or self._encoders.sources != sources:
            self._encoders = BatchedSources(sources, self.target.precision)
        seen = pathways[0].original(observations)
        if not torch.is_grad_enabled():
            return told(pathways, self._encoders, seen)
        with torch.set_grad_enabled(not all(source.frozen for source in sources)):
            return told(pathways, self._encoders, seen)

    def original(self, observations: Observations) -> Observations:
        """Observations as the sources see them: before the target's VecNormalize."""
        before: Observations = cast("SourcePathway", self.sources[0]).original(observations)
        return before

    @property
    def widths(self) -> list[int]:
        """How many features each source has of its own."""
        return [cast("SourcePathway", pathway).source.width for pathway in self.sources]

    @contextmanager
    def reminded(self, heard: Float[Tensor, " batch *said"] | None) -> Iterator[None]:
        """Inside, sources are not computed: this was said of the same observations before.

        Args:
            heard: What `listen` said, `(batch, sources, said)`, or what `side_by_side` said, `(batch, said)`; none for nothing.
        """
        before = self._heard
        if heard is not None:
            self._heard = heard
        try:
            yield
        finally:
            self._heard = before

    def side_by_side(self, observations: Observations) -> Float[Tensor, "batch said"]:
        """What all sources themselves say, one after the other in a row, each as wide as it is."""
        if self._heard is not None and self._heard.ndim == 2:
            return self._heard
        return torch.cat(self._said(observations), dim=1)

    def routed_together(self, heard: Float[Tensor, "batch said"], router: Router, explore_coef: float) -> Aggregated:
        """What sources are worth together, by a router that reads all of what they say, side by side (`side_by_side`)."""
        projections = [cast("nn.Linear", cast("SourcePathway", pathway).projection) for pathway in self.sources]
        return aggregated(heard.split(self.widths, dim=1), router.readers[0](heard), projections, router.hidden, router.mean, explore_coef)

    def voices(self, observations: Observations) -> list[Float[Tensor, "batch _"]]:
        """What all sources' pathways say, each in its own width."""
        return [cast("SourcePathway", pathway).voiced(said) for pathway, said in zip(self.sources, self._said(observations), strict=True)]

    def _voiced(self, observations: Observations) -> Float[Tensor, "batch sources width"]:
        """What all sources' pathways say, all as wide."""
        block = self._heard
        if block is None or block.ndim != 3 or self.target.level == "features":
            return torch.stack(self.voices(observations), dim=1)
        stds = self._stds()
        if stds is None:
            return block
        mean = block.chunk(2, dim=2)[0]
        return torch.cat([mean, stds.expand_as(mean)], dim=2)

    def _said(self, observations: Observations) -> list[Tensor]:
        if self._heard is not None:
            return list(self._heard.unbind(dim=1) if self._heard.ndim == 3 else self._heard.split(self.widths, dim=1))
        return self._listened(list(range(len(self.sources))), observations)

    def speak(
        self, observations: Observations, active: Bool[Tensor, "batch pathways"], fresh: Float[Tensor, "batch width"] | None = None
    ) -> Float[Tensor, "batch pathways width"]:
        """What the active pathways say; the others are not computed and are silent (zeros).

        Args:
            observations: As SB3 preprocesses them.
            active: Who is to speak, row by row.
            fresh: At the level of outputs, what the target's own actor says.
        """
        speakers: list[Any] = list(self.sources)
        if self.fresh is not None:
            speakers.append(self.fresh)
        n_sources = len(self.sources)
        if fresh is None or len(self.names) == n_sources:
            return self._spoken(speakers, observations, active)
        said = fresh[:, None]
        if not n_sources:
            return said
        return torch.cat([self._spoken(speakers, observations, active[:, :n_sources]), said], dim=1)

    def answer(
        self, asked: Int[Tensor, " batch"], observations: Observations, heard: Float[Tensor, "batch sources said"] | None
    ) -> Float[Tensor, "batch width"]:
        """At the level of outputs, what one source a row says itself; no other is computed. Anything where the fresh pathway is asked.

        Args:
            asked: Who, row by row.
            observations: As SB3 preprocesses them.
            heard: What `listen` said of them; none for nothing.
        """
        n_sources = len(self.sources)
        if heard is None:
            wanted = functional.one_hot(asked, len(self.names))[:, :n_sources].bool()
            heard = self._spoken(list(self.sources), observations, wanted)
        return heard[places(len(asked), asked.device), asked.clamp(max=n_sources - 1)]

    @property
    def log_stds(self) -> list[Tensor]:
        """Logarithms of the standard deviations of the sources' pathways; none if they have the sources' own."""
        stds = [cast("SourcePathway", pathway).log_std for pathway in self.sources]
        return [std for std in stds if std is not None]

    def _stds(self) -> Float[Tensor, "sources actions"] | None:
        """The same, stacked."""
        stds = self.log_stds
        return torch.stack(stds) if stds else None

    def _spoken(
        self, speakers: list[Any], observations: Observations, active: Bool[Tensor, "batch speakers"]
    ) -> Float[Tensor, "batch speakers width"]:
        n_sources = len(self.sources)
        together = self.target.precision != "float32" and n_sources > 1
        # A look at the device, for once only.
        all_speak = bool(active[:, :n_sources].all()) if together or self._heard is not None else False
        if self._heard is None and not all_speak:
            return dispatch(speakers, observations, active, self.width)
        said = self._voiced(observations)
        if not all_speak:
            said = said * active[:, :n_sources, None]
        if len(speakers) == n_sources:
            return said
        return torch.cat([said, dispatch(speakers[n_sources:], observations, active[:, n_sources:], self.width)], dim=1)

    def see_through(self, statistics: Statistics, epsilon: float) -> None:
        """Let the sources see what was before the target's VecNormalize."""
        for pathway in self.sources:
            assert isinstance(pathway, SourcePathway)
            pathway.original.learn(statistics, epsilon)


def spec_sources(spec: HubSpec) -> list[Source]:
    """The sources of a spec: shared and frozen, or copies to be tuned with a learning rate of their own."""
    if not spec.tuned:
        return [shared.get(card) for card in spec.sources]
    owned = [shared.make_trainable(card) for card in spec.sources]
    for source in owned:
        for parameter in source.parameters():
            parameter.lr_scale = spec.source_lr  # type: ignore[attr-defined]
    return owned
