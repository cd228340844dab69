"""The members of routing: sources in the hub's order, then perhaps a fresh pathway, all speaking alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn import functional

from hubrl.aggregation import Aggregated, aggregated
from hubrl.distributions import places
from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.cards import Conv, Layers, Trunk
from hubrl.formats.hub_spec import HubSpec, Precision
from hubrl.formats.spaces import describe, differing_bounds, fits
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.routing import Router, dispatch
from hubrl.sources import action_params, shared
from hubrl.sources.batched import BatchedSources
from hubrl.sources.heads import GaussianAction
from hubrl.sources.observation_batch import leaves_images_undivided
from hubrl.sources.preprocessing import Observations, Statistics
from hubrl.sources.source import Source
from hubrl.sources.trunks import NATURE, Reader, mlp

FRESH = "fresh"

SMALLEST_NATURE = 36
"""Pixels a side that the three convolutions of NatureCNN need."""

WIDEST = 128
"""Width to which features are projected at most, unless told otherwise: the layer that SB3 puts behind them has 64 units."""


@dataclass(frozen=True)
class Target:
    """What the sources have to fit: the target's spaces, and the level at which they speak to it."""

    observation_space: spaces.Space[Any]
    level: action_params.Level = "features"
    action_space: spaces.Space[Any] | None = None
    source_std: float | Literal["auto"] | None = None
    """At the level of outputs, the standard deviation at which a source's pathway starts (`starting_std`); none: as the
    source has it."""
    action_meanings: tuple[str, ...] | None = None
    """At the level of outputs, what the discrete actions mean; sources that know what theirs mean need not have the same."""
    precision: Precision = "float32"
    """In what encoders are computed."""


STD_RANGE = (0.05, 0.1)
"""Least and greatest standard deviation at which a source's pathway starts by itself, in units of the action [ours]."""


def starting_std(source: Source) -> float:
    """Standard deviation at which a source's pathway starts: the one it was trained with, within `STD_RANGE` [ours].

    Agents of on-policy algorithms learned one standard deviation for all states and stand it. Those of SAC, TQC and TD3
    did not, and start at the least: at twice as much, good ones earn a sixth less while training.
    """
    action = source.action
    if not isinstance(action, GaussianAction) or action.head.log_std != "parameter":
        return STD_RANGE[0]
    own = float(cast("Tensor", action.log_std).detach().exp().mean())
    return min(max(own, STD_RANGE[0]), STD_RANGE[1])


class SourcePathway(nn.Module):
    """One source, heard by the target at one level."""

    def __init__(self, source: Source, target: Target, width: int | None) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.projection = nn.Linear(source.width, width) if target.level == "features" and width is not None else None
        self.log_std: nn.Parameter | None = None
        if target.level == "outputs" and isinstance(target.action_space, spaces.Box) and target.source_std is not None:
            std = starting_std(source) if target.source_std == "auto" else target.source_std
            start = torch.full((get_action_dim(target.action_space),), std).log()
            self.log_std = nn.Parameter(start)
        self.original = Original(target.observation_space)
        self._encoders: BatchedSources | None = None

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """What the source says of the target's observations."""
        return self.voiced(self.listen(observations))

    def listen(self, observations: Observations) -> Float[Tensor, "batch said"]:
        """What the source itself says; if it is frozen, the same for the same observations for ever."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.source.frozen):
            if self._encoders is None or self._encoders.sources != [self.source]:  # a frozen source changes with the device
                self._encoders = BatchedSources([self.source], self.target.precision)
            return told([self], self._encoders, self.original(observations))[0]

    def in_target(self, said: Float[Tensor, "batch own_outputs"]) -> Float[Tensor, "batch outputs"]:
        """What the source says at the level of outputs, in the target's actions."""
        own, wanted = self.source.card.action_meanings, self.target.action_meanings
        return said if own is None or wanted is None or own == wanted else action_params.match_meanings(said, own, wanted)

    def voiced(self, said: Float[Tensor, "batch said"]) -> Float[Tensor, "batch width"]:
        """What the pathway makes of it: projected features, or outputs with the pathway's own standard deviation."""
        if self.projection is not None:
            projected: Tensor = self.projection(said)
            return projected
        if self.log_std is None:  # features as they are, too
            return said
        mean, _ = said.chunk(2, dim=1)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> "SourcePathway":
        """Move everything but a frozen source, which others share; take the copy that is where we go."""
        if self.source.frozen:
            like = fn(torch.empty(0))
            self.source = shared.on_device(self.source, like)
            for module in (self.projection, self.original):
                if module is not None:
                    module._apply(fn)  # type: ignore[no-untyped-call]
            super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]
        else:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def told(pathways: Sequence[SourcePathway], encoders: BatchedSources, observations: Observations) -> list[Tensor]:
    """What the sources of some pathways themselves say of observations as they see them, at the target's level."""
    if pathways[0].target.level == "features":
        return encoders(observations)
    return [pathway.in_target(said) for pathway, said in zip(pathways, encoders.outputs(observations), strict=True)]


class Original(nn.Module):
    """Undoes the target's VecNormalize, so that sources see the observations they were trained on.

    Its buffers are called `running_*`, which SB3 copies to target networks. Until a callback sets them it does
    nothing. Observations that VecNormalize clipped come back clipped.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.keys = [key for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)]
        for index, key in enumerate(self.keys):
            self.register_buffer(f"running_mean_{index}", torch.zeros(parts[key].shape or (1,)))
            self.register_buffer(f"running_std_{index}", torch.ones(parts[key].shape or (1,)))

    def learn(self, statistics: Statistics, epsilon: float) -> None:
        """Take over the statistics of the target's VecNormalize as they are now.

        Raises:
            BadConfig: If they are of other observations.
        """
        for index, key in enumerate(self.keys):
            if key in statistics:
                mean, var = statistics[key]
                seen = self.get_buffer(f"running_mean_{index}").shape
                if mean.size != seen.numel():
                    raise BadConfig(
                        f"VecNormalize normalises observations of shape {mean.shape}, and the agent sees {tuple(seen)}; put VecNormalize "
                        "around the wrapper that changes them."
                    )
                self.get_buffer(f"running_mean_{index}").copy_(torch.as_tensor(mean))
                self.get_buffer(f"running_std_{index}").copy_(torch.as_tensor(var + epsilon).sqrt())

    def forward(self, observations: Observations) -> Observations:
        """Observations before the target's VecNormalize."""
        if isinstance(observations, Tensor):
            return self._undone(0, observations) if self.keys else observations
        return {**observations, **{key: self._undone(index, observations[key]) for index, key in enumerate(self.keys)}}

    def _undone(self, index: int, values: Tensor) -> Tensor:
        mean, std = (cast("Tensor", self._buffers[f"running_{what}_{index}"]) for what in ("mean", "std"))
        return torch.addcmul(mean, values, std)


class FreshPathway(nn.Module):
    """A new network at the level of features: NatureCNN for images, SB3's combined extractor for Dict, else an MLP.

    Args:
        space: The target's observations.
        width: Width of its features.
        scale: How many times wider its hidden layers are than usual: 64 units each, or NatureCNN's channels.
        precision: In what NatureCNN is computed, if it is no wider than usual.
    """

    def __init__(self, space: spaces.Space[Any], width: int, scale: int = 1, precision: Precision = "float32") -> None:
        super().__init__()
        kind = extractor_class(space)
        if kind is NatureCNN and scale > 1:
            convs = tuple(Conv(channels=scale * channels, kernel=kernel, stride=stride) for channels, kernel, stride in NATURE)
            self.reader: nn.Module = Reader(space, Trunk(convs=convs, linear=512))
            inputs = 512
        elif kind is not FlattenExtractor:
            extractor = extractor_class(space, precision)(space)
            self.reader = extractor
            inputs = extractor.features_dim
        else:
            layers = Layers(widths=(64 * scale, 64 * scale))
            self.reader = nn.Sequential(nn.Flatten(), *mlp(int(get_flattened_obs_dim(space)), layers))
            inputs = layers.widths[-1]
        self.projection = nn.Linear(inputs, width)

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features of a network that began as nothing."""
        features: Tensor = self.projection(self.reader(observations))
        return features


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


def extractor_class(space: spaces.Space[Any], precision: Precision = "float32") -> type[BaseFeaturesExtractor]:
    """The features extractor that SB3's own policies have for such observations; small images are flattened."""
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    if isinstance(space, spaces.Box) and is_image_space(space) and min(space.shape[1:]) >= SMALLEST_NATURE:
        return BF16NatureCNN if precision == "bfloat16" else NatureCNN
    return FlattenExtractor


def check_meanings(meanings: tuple[str, ...] | None, space: spaces.Space[Any]) -> tuple[str, ...] | None:
    """Refuse meanings that are not one for each discrete action.

    Raises:
        SpaceMismatch: Saying how many there are.
    """
    if meanings is not None and (not isinstance(space, spaces.Discrete) or len(meanings) != space.n):
        raise SpaceMismatch(f"{len(meanings)} action_meanings were given, the target acts in {describe(space)}.")
    return meanings


def check_fit(source: Source, target: Target) -> None:
    """Refuse a source that cannot read the target's observations or, at the level of outputs, act in its actions.

    Raises:
        SpaceMismatch: Saying both spaces, and what to do.
    """
    if not source.accepts(target.observation_space):
        raise SpaceMismatch(
            f"The target observes {describe(target.observation_space)}, source {source.name!r} observes {describe(source.space)}; "
            "leave it out, or give its card a preprocessing step that selects what it reads."
        )
    if leaves_images_undivided(source.card, target.observation_space):
        raise SpaceMismatch(
            f"Source {source.name!r} learned from uint8 images, which SB3 divides by 255; those of the target are of another dtype and "
            "are not divided. Let the target observe uint8."
        )
    if target.level == "outputs":
        _check_actions(source, target)


def _check_actions(source: Source, target: Target) -> None:
    assert target.action_space is not None
    if source.actions is None:
        raise SpaceMismatch(f"Source {source.name!r} is an encoder alone and has no outputs; use level='features'.")
    own, wanted = source.card.action_meanings, target.action_meanings
    if own is not None and wanted is not None:
        if not set(own) & set(wanted) - {"NOOP"}:
            raise SpaceMismatch(f"Source {source.name!r} knows none of the target's actions {', '.join(wanted)}; use level='features'.")
        return
    if not fits(source.actions, target.action_space):
        discrete = isinstance(source.actions, spaces.Discrete) and isinstance(target.action_space, spaces.Discrete)
        hint = ", or say what the actions of both mean (action_meanings)" if discrete else ""
        raise SpaceMismatch(
            f"The target acts in {describe(target.action_space)}, source {source.name!r} in {describe(source.actions)}; "
            f"use level='features'{hint}."
        )
    bounds = differing_bounds(target.action_space, source.actions)
    if bounds is not None:
        raise SpaceMismatch(
            f"The target's actions go from {bounds[0]}, those of source {source.name!r} from {bounds[1]}; "
            "put the target under gymnasium.wrappers.RescaleAction, or use level='features'."
        )
