"""Zoo-Tuning: the sources' layers, aligned and aggregated by gates."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.methods.base import Experts
from hubrl.methods.gated_layers import GatedLayer
from hubrl.methods.registry import register
from hubrl.methods.single import SingleSource
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.routing.weights import dispatch
from hubrl.sources import action_params
from hubrl.sources.convolutions import first_convolution, is_nature
from hubrl.sources.layers import Kernel, kernels, merge_layers
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

OUTPUTS_LR = 0.03
"""Factor on the learning rate at which PPO does not spoil sources that act well [new]."""

UNIFORM = "uniform"
"""Name of the start at which every source's kernel counts the same."""


class MergeStarts:
    """Starts that a probe compares: the mean kernel, and every source as it is.

    Args:
        pathways: The one pathway, whose layers are gated.
        source_names: Names of the sources.
    """

    def __init__(self, pathways: Pathways, source_names: Sequence[str]) -> None:
        n_sources = len(source_names)
        self.pathways = pathways
        self.names = [UNIFORM, *source_names]
        mean = torch.full((1, n_sources), 1 / n_sources)
        self.gates = torch.cat([mean, torch.eye(n_sources)])  # (starts, sources)

    def select(self, index: int) -> None:
        """Set the initial gates of every layer."""
        for layer in layers_in(self.pathways).values():
            layer.set_start(self.gates[index])

    def compute_outputs(
        self,
        observations: Observations,
        active: Bool[Tensor, "batch starts"],
        fresh: Tensor | None = None,
    ) -> Float[Tensor, "batch starts width"]:
        """Outputs of the network from each start; zeros where it is not active."""
        each = [partial(self._output, index) for index in range(len(self.names))]
        outputs = dispatch(each, observations, active, self.pathways.width)
        self.select(0)
        return outputs

    def _output(self, index: int, observations: Observations) -> Float[Tensor, "batch width"]:
        self.select(index)
        output: Tensor = self.pathways.sources[0](observations)
        return output


@register("zoo-tuning")
class ZooTuning(SingleSource):
    """One network of gated layers made of all sources' (Shu et al., *Zoo-Tuning*, ICML 2021).

    Channel alignment and data-dependent gates are the paper's, as its code has them for image
    classification. hubrl adds for reinforcement learning: gates without batch normalisation
    (`Gates`), alignment of linear layers, aggregated action heads at the level of outputs, the
    start that a probe chooses, and the learning rates.

    Args:
        sources: The sources, in order; all of one architecture.
        target: The target's spaces and level.
        align: Whether output channels are aligned.
        gate: Whether gates depend on each layer's input; otherwise they stay at their start.
        start: Initial gates. `uniform`: every kernel counts the same, as in the paper; `probe`: the
            best in a probe of that and of every source alone, whose gates start at 1 and the
            others' at 0. Without a probe it is uniform.
        align_lr: Learning rate of alignments, as a factor on the algorithm's; by default 0.03 at
            the level of outputs, 1 at that of features, as `source_lr`.
        gate_lr: Learning rate of gates, likewise.
    """

    summary = "the sources' kernels aligned and aggregated layer by layer, all trained (ICML 2021)"
    tunes = True
    allows_residual = False
    passes_observations = False
    layer: type[GatedLayer] = GatedLayer

    def __init__(
        self,
        sources: Sequence[Source],
        target: TargetSpec,
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
                raise BadConfig(
                    f"{option}={rate:g} was given; a learning rate's factor must be above 0."
                )
        head = target.level == "outputs"
        check_convolutions(sources, name)
        channels = _input_channels(sources[0], head=head)
        aligned = _aligned_layers(sources[0], head=head) if align else set()
        merged = merge_layers(
            sources,
            name,
            f"Method {name!r} aggregates layers of one shape",
            lambda path, layers: self.layer(
                layers, channels[path], align=path in aligned, gate=gate
            ),
            head=head,
        )
        if target.precision == "bfloat16" and is_nature(sources[0]):
            first = first_convolution(merged)
            assert isinstance(first, GatedLayer)
            first.read_blocks(255 if sources[0].card.normalize_images else 1)
        super().__init__(Pathways([merged], target, fresh=False, project=False))
        self.source_names = [source.name for source in sources]
        self.starts = MergeStarts(self.pathways, self.source_names)
        self.register_buffer("started", torch.tensor(start == UNIFORM or len(sources) == 1))
        default = self.source_lr(target.level)
        for layer in layers_in(self.pathways).values():
            for part, rate in ((layer.alignment, align_lr), (layer.gates, gate_lr)):
                set_rate(part, default if rate is None else rate)

    @classmethod
    def source_lr(cls, level: action_params.Level) -> float:
        """Default learning rate: low where the sources act, the algorithm's under a new head."""
        return OUTPUTS_LR if level == "outputs" else 1.0

    @property
    def probe_candidates(self) -> Experts:
        """The starts."""
        return self.starts

    @property
    def awaits_probe(self) -> bool:
        """Whether a probe should choose the start, and none has."""
        return not bool(self.get_buffer("started"))

    def apply_probe(
        self, kept: Sequence[bool], start: Sequence[float], returns: Sequence[float] = ()
    ) -> None:
        """Start with the greatest return."""
        scores = [-math.inf if math.isnan(value) else value for value in returns or start]
        indices = (index for index, stays in enumerate(kept) if stays)
        self.starts.select(max(indices, key=lambda index: scores[index]))
        self.get_buffer("started").fill_(True)

    def measures(self) -> dict[str, float]:
        """Gate of each source in each layer, averaged over the last batch."""
        return {
            f"gate/{layer_name(path)}/{name}": float(gate)
            for path, layer in layers_in(self.pathways).items()
            if layer.gates is not None
            for name, gate in zip(self.source_names, layer.mean_gates, strict=True)
        }


def check_convolutions(sources: Sequence[Source], name: str) -> None:
    """Refuse convolutions whose kernels cannot be aggregated.

    Raises:
        SpaceMismatch: With the source and its layer.
    """
    for source in sources:
        for path, layer in kernels(source, head=False).items():
            if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
                raise SpaceMismatch(
                    f"Method {name!r} aggregates convolutions of one group padded by zeros, and "
                    f"source {source.name!r} has {layer} at layer {path}; leave it out, or use "
                    "method 'hub-pathway'."
                )


def set_rate(part: nn.Module | nn.Parameter | None, rate: float) -> None:
    """Set the learning rate of a parameter, or of a module's, as a factor on the algorithm's."""
    if part is None:
        return
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    for parameter in parameters:
        parameter.lr_scale = rate  # type: ignore[attr-defined]


def layers_in(pathways: Pathways) -> dict[str, GatedLayer]:
    """Gated layers of pathways, by path."""
    return {path: part for path, part in pathways.named_modules() if isinstance(part, GatedLayer)}


def layer_name(path: str) -> str:
    """Name of a layer in its source, of its path among the pathways."""
    return path.removeprefix("sources.0.source.")


def _aligned_layers(source: Source, *, head: bool) -> set[str]:
    """Names of the layers that are aligned: the convolutions, or all where there is none.

    Alignment of a linear layer behind convolutions costs as much as all the rest of the network,
    and the authors' code aligns convolutions alone.
    """
    layers = kernels(source, head=head)
    convolutions = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    return convolutions or set(layers)


def _input_channels(source: Source, *, head: bool) -> dict[str, int]:
    """Channels of each layer's input; a linear layer behind a convolution has the convolution's."""
    channels: dict[str, int] = {}
    last: Kernel | None = None
    for name, layer in kernels(source, head=head).items():
        if isinstance(layer, nn.Conv2d):
            channels[name] = layer.in_channels
        elif isinstance(last, nn.Conv2d) and layer.in_features % last.out_channels == 0:
            channels[name] = last.out_channels
        else:
            channels[name] = layer.in_features
        last = layer
    return channels
