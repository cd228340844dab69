"""The pathways of a hub: its sources in order, then perhaps a fresh pathway, all of one width."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.formats.hub_spec import HubSpec
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.manual_gradients import is_tracing
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.routing.fused import FusedAggregate, fused_aggregate
from hubrl.routing.router import Router
from hubrl.routing.rowwise import RowwiseSources
from hubrl.routing.source_pathway import SourcePathway, batched_outputs
from hubrl.routing.target import TargetSpec, check_fit
from hubrl.routing.weights import cached_arange, device_of, dispatch, n_rows, take_rows
from hubrl.sources import action_params, shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.preprocessing import Observations, Statistics
from hubrl.sources.source import Source

FRESH = "fresh"
"""Name of the fresh pathway."""

MAX_WIDTH = 128
"""Width of projected features, at most, unless given: SB3's next layer has 64 units."""

SourceOutputs = Float[Tensor, "batch *own"]
"""Cached outputs of the sources for the same observations: `(batch, sources, width)` at the level
of outputs, `(batch, sum of widths)` at that of features."""


class Pathways(nn.Module):
    """The pathways between which a method routes.

    At the level of features every source is projected to a common width, and a fresh pathway is a
    network of its own. At the level of outputs the fresh pathway is the target's own actor, which
    the policy computes and passes in.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        fresh: Whether a fresh pathway is the last.
        fresh_name: Name of the fresh pathway.
        width: Width of the features; by default the widest source's, at most `MAX_WIDTH`. Without
            meaning at the level of outputs.
        project: Whether features are projected to the width; otherwise each keeps its own.

    Raises:
        SpaceMismatch: If a source does not fit the target.
        BadConfig: If there is no pathway.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
        *,
        fresh: bool,
        fresh_name: str = FRESH,
        width: int | None = None,
        project: bool = True,
    ) -> None:
        super().__init__()
        if not sources and not fresh:
            raise BadConfig("A hub without sources was given; expected at least one source.")
        for source in sources:
            check_fit(source, target)
        self.target = target
        self.names = [source.name for source in sources] + [fresh_name] * fresh
        if target.level == "outputs":
            assert target.action_space is not None
            self.width = action_params.width(target.action_space)
        else:
            widest = max((source.width for source in sources), default=64)
            self.width = width or (min(widest, MAX_WIDTH) if project else widest)
        self.sources = nn.ModuleList(
            SourcePathway(source, target, self.width if project else None) for source in sources
        )
        self.fresh = (
            FreshPathway(target.observation_space, self.width, precision=target.precision)
            if fresh and target.level == "features"
            else None
        )
        fresh_reads_bytes = self.fresh is None or isinstance(self.fresh.reader, BF16NatureCNN)
        sources_read_bytes = BatchedSources(sources, target.precision).reads_bytes
        self.reads_bytes = fresh_reads_bytes and sources_read_bytes
        """Whether uint8 images may be given undivided, for the same outputs."""
        self._encoders: BatchedSources | None = None
        self._rowwise: RowwiseSources | None = None
        self.sees_through = False
        """Whether the statistics of a VecNormalize were set."""

    @property
    def has_fresh(self) -> bool:
        """Whether a fresh pathway is the last."""
        return len(self.names) > len(self.sources)

    def compute_source_outputs(
        self, observations: Observations, wanted: Sequence[bool]
    ) -> Float[Tensor, "batch sources own"]:
        """Outputs of the wanted sources, for storage; zeros for the others.

        Args:
            observations: As SB3 preprocesses them.
            wanted: Whether each pathway may be active at all.
        """
        members = [index for index in range(len(self.sources)) if wanted[index]]
        if not members:
            device = device_of(observations)
            return torch.zeros(n_rows(observations), len(self.sources), self.width, device=device)
        with torch.no_grad():
            if self.target.action_meanings is None:
                pathways, encoders = self._together(members)
                denormalizer = pathways[0].denormalizer
                raw = observations if denormalizer.is_identity else denormalizer(observations)
                computed = encoders.stacked_outputs(raw)
            else:
                computed = torch.stack(self._batched(members, observations), dim=1)
            if len(members) == len(self.sources):
                return computed
            every = computed.new_zeros(len(computed), len(self.sources), self.width)
            every[:, members] = computed
            return every

    def compute_outputs(
        self,
        observations: Observations,
        active: Bool[Tensor, "batch pathways"],
        fresh: Float[Tensor, "batch width"] | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Float[Tensor, "batch pathways width"]:
        """Outputs of the active pathways; the others are not computed and zero.

        Args:
            observations: As SB3 preprocesses them.
            active: Active pathways, row by row.
            fresh: At the level of outputs, the output of the target's own actor.
            source_outputs: Cached outputs of the sources, if any.
        """
        members: list[Any] = [*self.sources, *([] if self.fresh is None else [self.fresh])]
        n_sources = len(self.sources)
        if fresh is None or len(self.names) == n_sources:
            return self._dispatched(members, observations, active, source_outputs)
        if not n_sources:
            return fresh[:, None]
        own = self._dispatched(members, observations, active[:, :n_sources], source_outputs)
        return torch.cat([own, fresh[:, None]], dim=1)

    def selected_output(
        self, pathway: Int[Tensor, " batch"], observations: Observations
    ) -> Float[Tensor, "batch width"]:
        """Output of each row's selected source; undefined where the fresh pathway is selected.

        Args:
            pathway: Index of the selected pathway.
            observations: As SB3 preprocesses them.
        """
        if not is_tracing():
            return self._outputs_of(pathway, observations)
        wanted = functional.one_hot(pathway, len(self.names))[:, : len(self.sources)].bool()
        outputs = self._dispatched(list(self.sources), observations, wanted, None)
        rows = cached_arange(len(pathway), pathway.device)
        return outputs[rows, pathway.clamp(max=len(self.sources) - 1)]

    def _outputs_of(
        self, pathway: Int[Tensor, " batch"], observations: Observations
    ) -> Float[Tensor, "batch width"]:
        """Output of each row's source, at a cost that does not grow with the number of sources."""
        members = pathway.tolist()  # the device is waited for once
        selected = {index for index in members if index < len(self.sources)}
        if len(selected) == 1 == len({*members}):
            output: Tensor = self.sources[members[0]](observations)
            return output
        if self._get_rowwise().serves(len(members), len(selected)):
            return self._get_rowwise()(observations, pathway.clamp(max=len(self.sources) - 1))
        outputs = torch.zeros(len(members), self.width, device=pathway.device)
        for index in sorted(selected):
            own = [row for row, member in enumerate(members) if member == index]
            rows = torch.tensor(own, device=pathway.device)
            outputs = outputs.index_copy(
                0, rows, self.sources[index](take_rows(observations, rows))
            )
        return outputs

    def _get_rowwise(self) -> RowwiseSources:
        """The sources as they are now, computed row by row."""
        first = cast("SourcePathway", self.sources[0]).source
        if self._rowwise is None or self._rowwise.first is not first:
            every: list[Any] = list(self.sources)
            self._rowwise = RowwiseSources(every)
        return self._rowwise

    def aggregate_active(
        self,
        observations: Observations,
        weights: Float[Tensor, "batch pathways"],
        active: Bool[Tensor, "batch pathways"],
    ) -> Float[Tensor, "batch width"]:
        """Weighted sum of the active pathways' features, without a place for those that are not.

        Args:
            observations: As SB3 preprocesses them.
            weights: Pathway weights.
            active: Active pathways, row by row.
        """
        rows, member = active[:, : len(self.sources)].nonzero().unbind(dim=1)
        selected = member.unique().tolist()
        total = torch.zeros(len(active), self.width, device=active.device)
        if self.sources and self._get_rowwise().serves(len(rows), len(selected)):
            features = self._get_rowwise()(take_rows(observations, rows), member)
            total = total.index_add(0, rows, features * weights[rows, member][:, None])
            selected = []
        pathways: list[Any] = list(self.sources) if selected else []
        every = [(index, rows[member == index], pathways[index]) for index in selected]
        if self.fresh is not None:
            last = len(self.sources)
            every.append((last, active[:, last].nonzero().squeeze(1), self.fresh))
        for index, own, pathway in every:
            if len(own):
                features = pathway(take_rows(observations, own))
                total = total.index_add(0, own, features * weights[own, index][:, None])
        return total

    def concatenated_features(
        self, observations: Observations, source_outputs: SourceOutputs | None = None
    ) -> Float[Tensor, "batch total"]:
        """Features of all sources side by side, each in its own width."""
        if source_outputs is not None and source_outputs.ndim == 2:
            return source_outputs
        return torch.cat(self._each(observations, source_outputs), dim=1)

    def projected(
        self, observations: Observations, source_outputs: SourceOutputs | None = None
    ) -> list[Float[Tensor, "batch _"]]:
        """Outputs of all sources' pathways, each in its own width."""
        each = zip(self.sources, self._each(observations, source_outputs), strict=True)
        return [cast("SourcePathway", pathway).project(outputs) for pathway, outputs in each]

    def features_of(
        self,
        members: list[int],
        observations: Observations,
        source_outputs: SourceOutputs | None = None,
    ) -> list[Float[Tensor, "batch own"]]:
        """Features of some sources themselves, each in its own width; no other is computed."""
        if source_outputs is None:
            return self._batched(members, observations)
        each = self._each(observations, source_outputs)
        return [each[index] for index in members]

    def fused_aggregate(
        self, features: Float[Tensor, "batch total"], router: Router, explore_coef: float
    ) -> FusedAggregate:
        """Aggregated features of all sources, for a router that reads `concatenated_features`."""
        projections = [
            cast("nn.Linear", cast("SourcePathway", pathway).projection) for pathway in self.sources
        ]
        return fused_aggregate(
            features.split(self.widths, dim=1),
            router.readers[0](features),
            projections,
            router.hidden,
            router.mean,
            explore_coef,
        )

    def denormalize(self, observations: Observations) -> Observations:
        """Observations before the target's VecNormalize, as the sources read them."""
        return cast("SourcePathway", self.sources[0]).denormalizer(observations)  # type: ignore[no-any-return]

    def set_statistics(self, statistics: Statistics, epsilon: float) -> None:
        """Copy the statistics of the target's VecNormalize, see `Denormalizer`."""
        self.sees_through = True
        for pathway in self.sources:
            cast("SourcePathway", pathway).denormalizer.set_statistics(statistics, epsilon)

    @property
    def widths(self) -> list[int]:
        """Width of each source's own features."""
        return [cast("SourcePathway", pathway).source.width for pathway in self.sources]

    @property
    def log_stds(self) -> list[Tensor]:
        """Logarithms of the sources' learned standard deviations; empty if they keep their own."""
        stds = [cast("SourcePathway", pathway).log_std for pathway in self.sources]
        return [std for std in stds if std is not None]

    def _each(
        self, observations: Observations, source_outputs: SourceOutputs | None
    ) -> list[Tensor]:
        """Outputs of all sources themselves."""
        if source_outputs is None:
            return self._batched(list(range(len(self.sources))), observations)
        if source_outputs.ndim == 3:
            return list(source_outputs.unbind(dim=1))
        return list(source_outputs.split(self.widths, dim=1))

    def _batched(self, members: list[int], observations: Observations) -> list[Tensor]:
        """Outputs of some sources themselves, computed together."""
        if not members:
            return []
        pathways, encoders = self._together(members)
        raw = pathways[0].denormalizer(observations)
        if not torch.is_grad_enabled():
            return batched_outputs(pathways, encoders, raw)
        with torch.set_grad_enabled(not all(pathway.source.frozen for pathway in pathways)):
            return batched_outputs(pathways, encoders, raw)

    def _together(self, members: list[int]) -> tuple[list[SourcePathway], BatchedSources]:
        """Pathways of some sources, and their networks as one call."""
        every = cast("list[SourcePathway]", list(self.sources))
        pathways = [every[index] for index in members]
        sources = [pathway.source for pathway in pathways]
        if self._encoders is None or self._encoders.sources != sources:
            self._encoders = BatchedSources(sources, self.target.precision)
        return pathways, self._encoders

    def _projected_stack(
        self, observations: Observations, source_outputs: SourceOutputs | None
    ) -> Float[Tensor, "batch sources width"]:
        """Outputs of all sources' pathways, all of one width."""
        is_stored = source_outputs is not None and source_outputs.ndim == 3
        if source_outputs is None or not is_stored or self.target.level == "features":
            return torch.stack(self.projected(observations, source_outputs), dim=1)
        if not self.log_stds:
            return source_outputs
        mean = source_outputs.chunk(2, dim=2)[0]
        return torch.cat([mean, torch.stack(self.log_stds).expand_as(mean)], dim=2)

    def _dispatched(
        self,
        members: list[Any],
        observations: Observations,
        active: Bool[Tensor, "batch members"],
        source_outputs: SourceOutputs | None,
    ) -> Float[Tensor, "batch members width"]:
        n_sources = len(self.sources)
        batches = self.target.precision != "float32" and n_sources > 1
        known = source_outputs is not None
        # Copied from the device, so only where it matters.
        all_active = bool(active[:, :n_sources].all()) if batches or known else False
        if not known and not all_active:
            return dispatch(members, observations, active, self.width)
        outputs = self._projected_stack(observations, source_outputs)
        if not all_active:
            outputs = outputs * active[:, :n_sources, None]
        if len(members) == n_sources:
            return outputs
        rest = dispatch(members[n_sources:], observations, active[:, n_sources:], self.width)
        return torch.cat([outputs, rest], dim=1)


def spec_sources(spec: HubSpec) -> list[Source]:
    """Sources of a spec: shared and frozen, or copies that are trained at a rate of their own."""
    if not spec.tuned:
        return [shared.get(card) for card in spec.sources]
    owned = [shared.make_trainable(card) for card in spec.sources]
    for source in owned:
        for parameter in source.parameters():
            parameter.lr_scale = spec.source_lr  # type: ignore[attr-defined]
    return owned
