"""Zoo-Tuning: the sources' parameters, aligned and aggregated layer by layer by what the layer reads."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.methods.base import Speakers
from hubrl.methods.gated_layers import GatedLayer
from hubrl.methods.registry import register
from hubrl.methods.single import Alone
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.routing.weights import dispatch
from hubrl.sources import action_params
from hubrl.sources.layers import Kernel, kernels, merge_layers
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

GENTLY = 0.03
"""Learning rates, as a factor on the algorithm's, at which PPO does not spoil sources that act well already [ours]."""

UNIFORM = "uniform"
"""The start at which every source's kernel counts the same."""


class Starts:
    """The starts between which a probe can choose: the mean kernel, and every source as it is; they speak as pathways do."""

    def __init__(self, pathways: Pathways, source_names: Sequence[str]) -> None:
        n_sources = len(source_names)
        self.pathways = pathways
        self.names = [UNIFORM, *source_names]
        self.gates = torch.cat([torch.full((1, n_sources), 1 / n_sources), torch.eye(n_sources)])  # (starts, sources)

    def begin(self, index: int) -> None:
        """Let every layer start there."""
        for layer in layers_in(self.pathways).values():
            layer.begin(self.gates[index])

    def speak(
        self, observations: Observations, active: Bool[Tensor, "batch starts"], fresh: Tensor | None = None
    ) -> Float[Tensor, "batch starts width"]:
        """What the network would say from each start; zeros where it is not active."""
        said = dispatch([partial(self._from, index) for index in range(len(self.names))], observations, active, self.pathways.width)
        self.begin(0)
        return said

    def _from(self, index: int, observations: Observations) -> Float[Tensor, "batch width"]:
        self.begin(index)
        said: Tensor = self.pathways.sources[0](observations)
        return said


@register("zoo-tuning")
class ZooTuning(Alone):
    """One network, each of whose layers is made of all sources' (Shu et al., *Zoo-Tuning*, ICML 2021), all of it trained.

    Channel alignment and data-dependent gates are the paper's, as its code has them for image classification; everything
    about reinforcement learning is ours: the gates' scale without batch normalisation (`Gates`), alignment of linear layers
    too, at the level of outputs the sources' action heads, aggregated like any layer, the start that a probe chooses, and
    the learning rates.

    Args:
        sources: The sources, in order; all of one architecture.
        target: What they have to fit.
        align: Whether output channels are aligned.
        gate: Whether gates depend on what each layer reads; otherwise they stay where they start.
        start: `uniform`: every kernel counts the same, as in the paper; `probe`: what a probe finds best of that and of every
            source alone, whose gates then start at 1 and the others' at 0. Without a probe it is uniform.
        align_lr: Learning rate of alignments, as a factor on the algorithm's; 0.03 at the level of outputs, 1 at that of
            features if not given, as `source_lr`.
        gate_lr: Learning rate of gates, likewise.
    """

    summary = "the sources' kernels aligned and aggregated layer by layer, all trained (ICML 2021)"
    tunes = True
    corrects = False
    passes_observations = False
    layer: type[GatedLayer] = GatedLayer

    def __init__(
        self,
        sources: Sequence[Source],
        target: Target,
        *,
        align: bool = True,
        gate: bool = True,
        start: str = "probe",
        align_lr: float | None = None,
        gate_lr: float | None = None,
    ) -> None:
        name = type(self).method_name
        if not sources:
            raise BadConfig(f"Method {name!r} needs a source; the hub has none.")
        if start not in ("probe", UNIFORM):
            raise BadConfig(f"start={start!r} was given; expected 'probe' or 'uniform'.")
        for option, rate in (("align_lr", align_lr), ("gate_lr", gate_lr)):
            if rate is not None and rate <= 0:
                raise BadConfig(f"{option}={rate:g} was given; a learning rate's factor must be above 0.")
        head = target.level == "outputs"
        check_convolutions(sources, name)
        channels = _input_channels(sources[0], head=head)
        one = merge_layers(
            sources,
            name,
            f"Method {name!r} aggregates layers of one shape",
            lambda path, layers: self.layer(layers, channels[path], align=align, gate=gate),
            head=head,
        )
        super().__init__(Pathways([one], target, fresh=False, project=False))
        self.source_names = [source.name for source in sources]
        self.starts = Starts(self.pathways, self.source_names)
        self.register_buffer("started", torch.tensor(start == UNIFORM or len(sources) == 1))
        own = self.source_lr(target.level)
        for made in layers_in(self.pathways).values():
            for part, rate in ((made.alignment, align_lr), (made.gates, gate_lr)):
                set_rate(part, own if rate is None else rate)

    @classmethod
    def source_lr(cls, level: action_params.Level) -> float:
        """Gentle where the sources act; where they are under a new head, the algorithm's."""
        return GENTLY if level == "outputs" else 1.0

    @property
    def candidates(self) -> Speakers:
        """The starts."""
        return self.starts

    @property
    def awaits_probe(self) -> bool:
        """Whether a probe should choose the start, and none has."""
        return not bool(self.get_buffer("started"))

    def trust(self, kept: Sequence[bool], start: Sequence[float], worth: Sequence[float] = ()) -> None:
        """Start where a probe earned most."""
        earned = [-math.inf if math.isnan(value) else value for value in worth or start]
        self.starts.begin(max((index for index, stays in enumerate(kept) if stays), key=lambda index: earned[index]))
        self.get_buffer("started").fill_(True)

    def measures(self) -> dict[str, float]:
        """Each source's gate in each layer, averaged over the last batch."""
        return {
            f"gate/{layer_name(path)}/{name}": float(gate)
            for path, part in layers_in(self.pathways).items()
            if part.gates is not None
            for name, gate in zip(self.source_names, part.mean_gates, strict=True)
        }


def check_convolutions(sources: Sequence[Source], name: str) -> None:
    """Refuse convolutions whose kernels cannot be aggregated.

    Raises:
        SpaceMismatch: Naming the layer of the source.
    """
    for source in sources:
        for path, layer in kernels(source, head=False).items():
            if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
                raise SpaceMismatch(
                    f"Method {name!r} aggregates convolutions of one group padded by zeros, and source {source.name!r} has {layer} at "
                    f"layer {path}; leave it out, or use method 'hub-pathway'."
                )


def set_rate(part: nn.Module | nn.Parameter | None, rate: float) -> None:
    """Give a parameter, or all of a module, a learning rate of its own, as a factor on the algorithm's."""
    parameters = [part] if isinstance(part, nn.Parameter) else [] if part is None else list(part.parameters())
    for parameter in parameters:
        parameter.lr_scale = rate  # type: ignore[attr-defined]


def layers_in(pathways: Pathways) -> dict[str, GatedLayer]:
    """The gated layers among pathways, by path."""
    return {path: part for path, part in pathways.named_modules() if isinstance(part, GatedLayer)}


def layer_name(path: str) -> str:
    """The name of a layer in its source, of its path among the pathways."""
    return path.removeprefix("sources.0.source.")


def _input_channels(source: Source, *, head: bool) -> dict[str, int]:
    """The channels that each layer reads; those of a convolution behind which was flattened count by channel, not by place."""
    channels: dict[str, int] = {}
    last: Kernel | None = None
    for name, layer in kernels(source, head=head).items():
        if isinstance(layer, nn.Conv2d):
            channels[name] = layer.in_channels
        else:
            behind_conv = isinstance(last, nn.Conv2d) and layer.in_features % last.out_channels == 0
            channels[name] = last.out_channels if behind_conv and isinstance(last, nn.Conv2d) else layer.in_features
        last = layer
    return channels
