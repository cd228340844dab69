"""The encoders of several sources, computed together where they are alike."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubrl.formats.cards import Layers, Trunk
from hubrl.formats.hub_spec import Precision
from hubrl.nn.bf16 import WeightCache, cast_convolutions, fold_blocks, layer_weights, nature_cnn, to_pixels
from hubrl.nn.manual_mlp import NUMPY_ACTIVATIONS, fits_numpy
from hubrl.sources.heads import GaussianAction, log_std_of
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import ACTIVATIONS, NATURE, Encoder, Trunks


class Encoders:
    """What the encoders of sources make of the same observations, in one call.

    Frozen perceptrons of the same widths and activation become batched products, in float32 always (a difference of about 1e-6);
    padding unlike ones to the widest cost more than it saved. In bfloat16 NatureCNNs that read the same images are one network: their
    first convolutions stacked, the others grouped, the last layer a batched product, with weights cast once; features differ
    from the sources' own by a few hundredths of their spread. Whatever fits neither is computed by itself, and its features are its
    own, bit for bit.

    Args:
        sources: The sources, which stay on their device; a tuned one gets its gradient.
        precision: In what NatureCNNs are computed.
    """

    def __init__(self, sources: Sequence[Source], precision: Precision = "float32") -> None:
        self.sources = list(sources)
        alike: dict[object, list[int]] = {}
        for index, source in enumerate(self.sources):
            alike.setdefault(kind(source, precision) or index, []).append(index)
        self._groups = [(members, _group([self.sources[index] for index in members], key)) for key, members in alike.items()]

    @property
    def reads_bytes(self) -> bool:
        """Whether images may be given as the bytes they are, for the same features."""
        return all(isinstance(group, NatureCNNs) and group.reads_bytes for _, group in self._groups)

    def __call__(self, observations: Observations) -> list[Float[Tensor, "batch _"]]:
        """Features of every source, each in its own width.

        Args:
            observations: As SB3 preprocesses them.

        Raises:
            SourcesNotLoaded: If a source's weights never arrived.
        """
        return self._in_order([group(observations) for _, group in self._groups])

    def outputs(self, observations: Observations) -> list[Float[Tensor, "batch outputs"]]:
        """What every source says at the level of outputs, see `Source.outputs`.

        Raises:
            SourcesNotLoaded: If a source's weights never arrived.
            SpaceMismatch: If a source is an encoder alone.
        """
        return self._in_order([group.outputs(observations) for _, group in self._groups])

    def _in_order(self, said: list[list[Tensor]]) -> list[Tensor]:
        if len(said) == 1:
            return said[0]
        places = {
            index: each for (members, _), own in zip(self._groups, said, strict=True) for index, each in zip(members, own, strict=True)
        }
        return [places[index] for index in range(len(self.sources))]


def kind(source: Source, precision: Precision) -> tuple[object, ...] | None:
    """What sources must have in common to be computed together; none for a source of a kind of its own."""
    encoder = source.encoder
    if not isinstance(encoder, Encoder) or not isinstance(encoder.trunks, Trunks) or not isinstance(source.space, spaces.Box):
        return None
    network = source.card.network
    trunks: dict[str, Trunk] = getattr(network, "trunks", {})
    if set(trunks) != {""}:
        return None
    trunk, hidden = trunks[""], encoder.hidden
    common = (
        source.space.shape,
        tuple(step.model_dump_json() for step in source.card.preprocessing),
    )
    # Zoo-Tuning puts layers of its own into an encoder whose card is a NatureCNN's.
    plain = sum(isinstance(part, nn.Conv2d) for part in encoder.trunks.modules()) == len(trunk.convs)
    if precision == "bfloat16" and plain and _is_nature(trunk) and source.normaliser is None and source.space.dtype.name == "uint8":
        return "nature", *common, trunk.linear, source.card.normalize_images
    layers: Layers = getattr(network, "hidden", Layers())
    if not trunk.convs and trunk.linear is None and len(hidden) and source.frozen:
        return "perceptron", *common, layers.widths, layers.activation
    return None


def _is_nature(trunk: Trunk) -> bool:
    convs = tuple((conv.channels, conv.kernel, conv.stride) for conv in trunk.convs)
    return convs == NATURE and not any(conv.padding for conv in trunk.convs) and trunk.linear is not None and trunk.activation == "relu"


class Group:
    """One source; what is said of several at once overrides this."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each, in order."""
        return [source.features(observations) for source in self.sources]

    def outputs(self, observations: Observations) -> list[Tensor]:
        """What each says at the level of outputs, in order."""
        return [source.spoken(features) for source, features in zip(self.sources, self(observations), strict=True)]


def _group(sources: list[Source], key: object) -> Group:
    match key:
        case ("nature", *_):
            return NatureCNNs(sources)
        case ("perceptron", *_) if len(sources) > 1:
            return Perceptrons(sources)
        case _:
            return Group(sources)


class NatureCNNs(Group):
    """NatureCNNs over the same images, in bfloat16."""

    def __init__(self, sources: list[Source]) -> None:
        super().__init__(sources)
        self.scale = 255 if sources[0].card.normalize_images else 1
        self.reads_bytes = not sources[0].card.preprocessing
        self._weights = [layer_weights(encoder_of(source).trunks) for source in sources]
        self._kept = WeightCache()

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each, behind its own hidden layers if it has any."""
        read = unready(self.sources).read(observations)
        assert isinstance(read, Tensor)
        images = to_pixels(read, self.scale)
        kept = self._kept.get([weight for own in self._weights for weight in own], self._cast)
        features = [nature_cnn(images, kept)] if len(self.sources) == 1 else _natures(images, kept, len(self.sources))
        return [encoder_of(source).hidden(said) for source, said in zip(self.sources, features, strict=True)]

    def _cast(self) -> list[Tensor]:
        own = [cast_convolutions(each, self.scale) for each in self._weights]
        if len(own) == 1:
            return own[0]
        *convolutions, last, last_bias = zip(*own, strict=True)
        stacked = [torch.cat(parts) for parts in convolutions]
        kernels = [part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in stacked]
        return [
            *kernels,
            torch.stack(last).transpose(1, 2).contiguous(),
            torch.stack(last_bias)[:, None],
        ]


def _natures(images: Tensor, weights: Sequence[Tensor], n: int) -> list[Tensor]:
    """Several NatureCNNs at once."""
    first, first_bias, second, second_bias, third, third_bias, last, last_bias = weights
    hidden = functional.conv2d(fold_blocks(images), first, first_bias).relu()
    hidden = functional.conv2d(hidden, second, second_bias, stride=2, groups=n).relu()
    hidden = functional.conv2d(hidden, third, third_bias, groups=n).relu()
    rows = hidden.flatten(1).view(len(images), n, -1).transpose(0, 1)  # (sources, batch, width)
    return list(torch.baddbmm(last_bias, rows, last).relu().float())


class Perceptrons(Group):
    """Perceptrons of the same widths over the same observations, each behind its own statistics."""

    def __init__(self, sources: list[Source]) -> None:
        super().__init__(sources)
        network = sources[0].card.network
        self.activation = ACTIVATIONS[getattr(network, "hidden", Layers()).activation]()
        self._in_numpy = NUMPY_ACTIVATIONS.get(type(self.activation))
        self._largest = max(weight.numel() for weight in layer_weights(sources[0].encoder))
        self._weights = [tensor for source in sources for tensor in layer_weights(source.encoder)]
        self._kept = WeightCache()
        self._heads = GaussianHeads(sources) if GaussianHeads.serve(sources) else None
        self._maps = any(source.card.action_map is not None for source in sources)

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each."""
        return list(self._features(observations))

    def outputs(self, observations: Observations) -> list[Tensor]:
        """What each one's own head makes of its features."""
        if self._heads is None:
            return super().outputs(observations)
        if not self._maps:
            return list(self._heads(self._features(observations)))
        return [source.mapped(said) for source, said in zip(self.sources, self._heads(self._features(observations)), strict=True)]

    def _features(self, observations: Observations) -> Float[Tensor, "sources batch width"]:
        mean, spread, clip, *layers = self._kept.get(self._weights, self._stacked, frozen=True)
        read = self._read(observations)
        hidden = ((read - mean) / spread).clamp(-clip, clip).float() if len(mean) else read.expand(len(self.sources), -1, -1)
        if self._in_numpy is not None and fits_numpy(read, self._largest):
            rows = hidden.numpy()
            for kernels, bias in zip(layers[::2], layers[1::2], strict=True):
                rows = self._in_numpy(rows @ kernels.numpy() + bias.numpy())
            return torch.from_numpy(rows)
        for kernels, bias in zip(layers[::2], layers[1::2], strict=True):
            hidden = self.activation(torch.baddbmm(bias, hidden, kernels))
        return hidden

    def _read(self, observations: Observations) -> Tensor:
        """Observations selected as all of them do, not yet normalised."""
        read = unready(self.sources).selected(observations)
        assert isinstance(read, Tensor)
        return read.flatten(1)

    def _stacked(self) -> list[Tensor]:
        layers = [torch.stack(alike) for alike in zip(*(layer_weights(encoder_of(source)) for source in self.sources), strict=True)]
        return [*self._statistics(), *map(_batched, layers)]

    def _statistics(self) -> list[Tensor]:
        """Mean, spread and clip of each, `(sources, 1, observed)`; none if no source normalises."""
        like = self._weights[0]
        found = [source.normaliser for source in self.sources]
        if not any(found):
            return [like.new_empty(0)] * 3
        none = like.new_zeros(1, dtype=torch.float64)
        means = [none if each is None else each.get_buffer("mean_0").flatten() for each in found]
        spreads = [none + 1 if each is None else (each.get_buffer("var_0").flatten() + each.how.epsilon).sqrt() for each in found]
        clips = [none + torch.inf if each is None else none + each.how.clip for each in found]
        width = max(len(mean) for mean in means)
        return [torch.stack([part.expand(width) for part in parts])[:, None] for parts in (means, spreads, clips)]


class GaussianHeads:
    """Gaussian heads of sources, all of a kind."""

    def __init__(self, sources: list[Source]) -> None:
        self.heads = [_gaussian_head(source) for source in sources]
        self._weights = [tensor for head in self.heads for tensor in (head.mean.weight, head.mean.bias, *head.own_std())]
        self._kept = WeightCache()

    @staticmethod
    def serve(sources: list[Source]) -> bool:
        """Whether the sources have such heads."""
        heads = [source.action for source in sources]
        first = heads[0]
        return isinstance(first, GaussianAction) and all(
            isinstance(head, GaussianAction) and head.head == first.head and head.space == first.space for head in heads
        )

    def __call__(self, features: Float[Tensor, "sources batch width"]) -> Float[Tensor, "sources batch outputs"]:
        """What each says, from its features."""
        kernels, bias, *std = self._kept.get(self._weights, self._stacked, frozen=True)
        first = self.heads[0]
        mean = torch.baddbmm(bias, features, kernels)
        if first.head.log_std == "linear":
            log_std = torch.baddbmm(std[1], features, std[0])
        else:
            log_std = log_std_of(features, std[0], expln=first.head.expln) if first.head.log_std == "sde" else std[0]
        return first.spoken(mean, log_std.expand_as(mean))

    def _stacked(self) -> list[Tensor]:
        means = [
            torch.stack([head.mean.weight for head in self.heads]),
            torch.stack([head.mean.bias for head in self.heads]),
        ]
        std = [torch.stack(alike) for alike in zip(*(head.own_std() for head in self.heads), strict=True)]
        # The matrix of state-dependent exploration is multiplied as it is.
        return [
            *map(_batched, means),
            *(std if self.heads[0].head.log_std == "sde" else map(_batched, std)),
        ]


def _batched(layer: Float[Tensor, " sources *own"]) -> Float[Tensor, " sources _ _"]:
    """Kernels or biases of several layers as a batched product takes them."""
    return layer.transpose(1, 2).contiguous() if layer.ndim == 3 else layer[:, None]


def _gaussian_head(source: Source) -> GaussianAction:
    assert isinstance(source.action, GaussianAction)
    return source.action


def encoder_of(source: Source) -> Encoder:
    """The encoder of a source that its card declares."""
    assert isinstance(source.encoder, Encoder)
    return source.encoder


def unready(sources: Sequence[Source]) -> Source:
    """The first of sources that read alike; one whose weights never arrived comes before it, and says so when it reads."""
    return next((source for source in sources if not source.arrived), sources[0])
