"""Features and action parameters of several sources, computed together where networks are alike."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hubrl.formats.cards import Layers, Trunk
from hubrl.formats.hub_spec import Precision
from hubrl.nn.bf16 import (
    cast_convolutions,
    fold_blocks,
    layer_weights,
    nature_cnn,
    to_pixels,
)
from hubrl.nn.freezing import WeightCache
from hubrl.nn.manual_gradients import NUMPY_ACTIVATIONS, fits_numpy
from hubrl.sources import action_params
from hubrl.sources.convolutions import has_plain_convolutions, is_nature, reads_blocks
from hubrl.sources.heads import GaussianAction, sde_log_std
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import ACTIVATIONS, Encoder, Trunks


class BatchedSources:
    """Several sources over the same observations, in one call.

    Frozen MLPs of the same widths and activation become batched products, in float32 always (a
    difference of about 1e-6). In bfloat16, NatureCNNs over the same images are one network: their
    first convolutions stacked, the others grouped, the last layer a batched product, with weights
    cast once; features differ by a few hundredths of their spread. Every other source is computed
    by itself, bit for bit.

    Args:
        sources: The sources, which stay on their device; tuned ones get their gradients.
        precision: Precision of NatureCNNs.
    """

    def __init__(self, sources: Sequence[Source], precision: Precision = "float32") -> None:
        self.sources = list(sources)
        alike: dict[object, list[int]] = {}
        for index, source in enumerate(self.sources):
            alike.setdefault(group_key(source, precision) or index, []).append(index)
        self._groups = [
            (members, _make_group([self.sources[index] for index in members], key))
            for key, members in alike.items()
        ]

    @property
    def reads_bytes(self) -> bool:
        """Whether uint8 images may be given undivided, for the same features."""
        return all(group.reads_bytes for _, group in self._groups)

    def __call__(self, observations: Observations) -> list[Float[Tensor, "batch _"]]:
        """Features of every source, each of its own width.

        Args:
            observations: A batch as SB3 preprocesses it.

        Raises:
            SourcesNotLoaded: If a source has no weights.
        """
        return self._in_order([group(observations) for _, group in self._groups])

    def outputs(self, observations: Observations) -> list[Float[Tensor, "batch outputs"]]:
        """Action parameters of every source, see `Source.outputs`.

        Raises:
            SourcesNotLoaded: If a source has no weights.
            SpaceMismatch: If a source is an encoder alone.
        """
        return self._in_order([group.outputs(observations) for _, group in self._groups])

    def stacked_outputs(self, observations: Observations) -> Float[Tensor, "batch sources outputs"]:
        """Action parameters of sources whose actions are of one width, see `outputs`."""
        group = self.gatherable("outputs")
        if group is None:
            return torch.stack(self.outputs(observations), dim=1)
        return group.stacked_outputs(observations).transpose(0, 1)

    def gatherable(self, level: action_params.Level) -> "MLPs | None":
        """The sources as one group whose rows can have a source each; None where they cannot."""
        _, group = self._groups[0]
        if len(self._groups) > 1 or not isinstance(group, MLPs):
            return None
        return group if level == "features" or group.gathers_outputs else None

    def _in_order(self, results: list[list[Tensor]]) -> list[Tensor]:
        if len(results) == 1:
            return results[0]
        places = {
            index: result
            for (members, _), own in zip(self._groups, results, strict=True)
            for index, result in zip(members, own, strict=True)
        }
        return [places[index] for index in range(len(self.sources))]


def group_key(source: Source, precision: Precision) -> tuple[object, ...] | None:
    """Properties that sources computed together share; None for a source computed by itself."""
    encoder, space = source.encoder, source.space
    if not isinstance(encoder, Encoder) or not isinstance(encoder.trunks, Trunks):
        return None
    network, card = source.card.network, source.card
    trunks: dict[str, Trunk] = getattr(network, "trunks", {})
    if not isinstance(space, spaces.Box) or set(trunks) != {""}:
        return None
    trunk = trunks[""]
    common = space.shape, tuple(step.model_dump_json() for step in card.preprocessing)
    if precision == "bfloat16" and reads_blocks(source):
        return None
    if precision == "bfloat16" and is_nature(source) and has_plain_convolutions(encoder):
        # Convolutions alone are computed one by one.
        alone = None if trunk.linear is not None else id(source)
        return "nature", *common, trunk.linear, card.normalize_images, alone
    layers: Layers = getattr(network, "hidden", Layers())
    flat = not trunk.convs and trunk.linear is None
    if flat and len(encoder.hidden) and source.frozen:
        return "mlp", *common, layers.widths, layers.activation
    return None


class Group:
    """Sources that are computed one by one."""

    reads_bytes = False
    """Whether uint8 images may be given undivided."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each source, in order."""
        return [source.features(observations) for source in self.sources]

    def outputs(self, observations: Observations) -> list[Tensor]:
        """Action parameters of each source, in order."""
        pairs = zip(self.sources, self(observations), strict=True)
        return [source.compute_outputs(features) for source, features in pairs]


def _make_group(sources: list[Source], key: object) -> Group:
    match key:
        case ("nature", *_):
            return NatureCNNs(sources)
        case ("mlp", *_) if len(sources) > 1:
            return MLPs(sources)
        case _ if reads_blocks(sources[0]):
            return BlockReader(sources)
        case _:
            return Group(sources)


class NatureCNNs(Group):
    """NatureCNNs over the same images, in bfloat16."""

    def __init__(self, sources: list[Source]) -> None:
        super().__init__(sources)
        self.scale = 255 if sources[0].card.normalize_images else 1
        self.reads_bytes = not sources[0].card.preprocessing
        self._weights = [layer_weights(declared_encoder(source).trunks) for source in sources]
        self._cache = WeightCache()

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each source, behind its own hidden layers if it has any."""
        inputs = first_unloaded(self.sources).preprocess(observations)
        assert isinstance(inputs, Tensor)
        images = to_pixels(inputs, self.scale)
        weights = self._cache.get([each for own in self._weights for each in own], self._cast)
        if len(self.sources) == 1:
            features = [nature_cnn(images, weights)]
        else:
            features = _nature_cnns(images, weights, len(self.sources))
        pairs = zip(self.sources, features, strict=True)
        return [declared_encoder(source).hidden(own) for source, own in pairs]

    def _cast(self) -> list[Tensor]:
        own = [cast_convolutions(each, self.scale) for each in self._weights]
        if len(own) == 1:
            return own[0]
        *convolutions, last, last_bias = zip(*own, strict=True)
        stacked = [torch.cat(parts) for parts in convolutions]
        kernels = [
            part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
            for part in stacked
        ]
        return [*kernels, *_batched_layers([torch.stack(last), torch.stack(last_bias)])]


def _nature_cnns(images: Tensor, weights: Sequence[Tensor], n: int) -> list[Tensor]:
    """`n` NatureCNNs at once."""
    first, first_bias, second, second_bias, third, third_bias, last, last_bias = weights
    hidden = functional.conv2d(fold_blocks(images), first, first_bias).relu()
    hidden = functional.conv2d(hidden, second, second_bias, stride=2, groups=n).relu()
    hidden = functional.conv2d(hidden, third, third_bias, groups=n).relu()
    rows = hidden.flatten(1).view(len(images), n, -1).transpose(0, 1)  # (sources, batch, width)
    return list(torch.baddbmm(last_bias, rows, last).relu().float())


class BlockReader(Group):
    """One NatureCNN of layers that compute in bfloat16, such as Zoo-Tuning's."""

    def __init__(self, sources: list[Source]) -> None:
        super().__init__(sources)
        self.scale = 255 if sources[0].card.normalize_images else 1
        self.reads_bytes = not sources[0].card.preprocessing

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of the source."""
        source = self.sources[0]
        inputs = source.preprocess(observations)
        assert isinstance(inputs, Tensor)
        encoder = declared_encoder(source)
        features = encoder.trunks(fold_blocks(to_pixels(inputs, self.scale)))
        return [encoder.hidden(features.float())]


class MLPs(Group):
    """MLPs of the same widths over the same observations, each with its own statistics."""

    def __init__(self, sources: list[Source]) -> None:
        super().__init__(sources)
        network = sources[0].card.network
        self.activation = ACTIVATIONS[getattr(network, "hidden", Layers()).activation]()
        self._numpy_activation = NUMPY_ACTIVATIONS.get(type(self.activation))
        self._largest = max(weight.numel() for weight in layer_weights(sources[0].encoder))
        self._weights = [weight for source in sources for weight in layer_weights(source.encoder)]
        self._cache = WeightCache()
        self._heads = GaussianHeads(sources) if GaussianHeads.supports(sources) else None
        self._maps = any(source.card.action_map is not None for source in sources)
        self.gathers_outputs = self._heads is not None and not self._maps
        """Whether `of_rows` serves for outputs too."""
        self.numbers = sum(weight.numel() for weight in layer_weights(sources[0].encoder))
        """Weights of a source's hidden layers."""

    def __call__(self, observations: Observations) -> list[Tensor]:
        """Features of each source."""
        return list(self._features(observations))

    def outputs(self, observations: Observations) -> list[Tensor]:
        """Action parameters of each source."""
        if self._heads is None:
            return super().outputs(observations)
        outputs = self.stacked_outputs(observations)
        if not self._maps:
            return list(outputs)
        pairs = zip(self.sources, outputs, strict=True)
        return [source.map_outputs(own) for source, own in pairs]

    def stacked_outputs(self, observations: Observations) -> Float[Tensor, "sources batch outputs"]:
        """Action parameters of all sources, before their action maps."""
        assert self._heads is not None
        return self._heads(self._features(observations))

    def of_rows(
        self, observations: Observations, member: Int[Tensor, " rows"], *, outputs: bool
    ) -> Float[Tensor, "rows _"]:
        """Features, or action parameters, of each row's own source.

        Args:
            observations: A batch as SB3 preprocesses it.
            member: Position of each row's source.
            outputs: Whether action parameters are wanted.
        """
        features = self._features(observations, member)
        if outputs and self._heads is not None:
            features = self._heads(features, member)
        return features.squeeze(1)

    def _features(
        self, observations: Observations, member: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "sources batch width"]:
        """Features of each source; with members a source for each row, and batches of one."""
        mean, std, clip, *layers = self._cache.get(self._weights, self._stack, frozen=True)
        first, inputs = first_unloaded(self.sources), observations
        if first.card.preprocessing or not first.weights_loaded:
            inputs = first.apply_steps(observations)
        assert isinstance(inputs, Tensor)
        rows = inputs.flatten(1)
        if member is not None:
            rows, layers = rows[:, None], [layer[member] for layer in layers]
            if len(mean):
                mean, std, clip = mean[member], std[member], clip[member]
        if len(mean):
            hidden = ((rows - mean) / std).clamp(-clip, clip).float()
        else:
            hidden = rows if member is not None else rows.expand(len(self.sources), -1, -1)
        pairs = list(zip(layers[::2], layers[1::2], strict=True))
        if self._numpy_activation is not None and fits_numpy(rows, self._largest):
            array = hidden.numpy()
            for kernels, bias in pairs:
                array = self._numpy_activation(array @ kernels.numpy() + bias.numpy())
            return torch.from_numpy(array)
        for kernels, bias in pairs:
            hidden = self.activation(torch.baddbmm(bias, hidden, kernels))
        return hidden

    def _stack(self) -> list[Tensor]:
        own = (layer_weights(declared_encoder(source)) for source in self.sources)
        layers = [torch.stack(alike) for alike in zip(*own, strict=True)]
        return [*self._statistics(), *_batched_layers(layers)]

    def _statistics(self) -> list[Tensor]:
        """Mean, spread and clip `(sources, 1, observed)`; empty if no source normalises."""
        like = self._weights[0]
        found = [source.normaliser for source in self.sources]
        if not any(found):
            return [like.new_empty(0)] * 3
        zero = like.new_zeros(1, dtype=torch.float64)
        rows = [
            (zero, zero + 1, zero + torch.inf)
            if each is None
            else (*(part.flatten() for part in each.moments()), zero + each.settings.clip)
            for each in found
        ]
        width = max(len(mean) for mean, _, _ in rows)
        columns = zip(*rows, strict=True)
        return [torch.stack([part.expand(width) for part in own])[:, None] for own in columns]


class GaussianHeads:
    """Gaussian heads of several sources, all of a kind."""

    def __init__(self, sources: list[Source]) -> None:
        self.heads = [
            source.action for source in sources if isinstance(source.action, GaussianAction)
        ]
        self._weights = [
            weight
            for head in self.heads
            for weight in (head.mean.weight, head.mean.bias, *head.std_parameters())
        ]
        self._cache = WeightCache()

    @staticmethod
    def supports(sources: list[Source]) -> bool:
        """Whether all sources have Gaussian heads with the same settings and actions."""
        heads = [source.action for source in sources]
        first = heads[0]
        return isinstance(first, GaussianAction) and all(
            isinstance(head, GaussianAction)
            and head.head == first.head
            and head.space == first.space
            for head in heads
        )

    def __call__(
        self,
        features: Float[Tensor, "sources batch width"],
        member: Int[Tensor, " sources"] | None = None,
    ) -> Float[Tensor, "sources batch outputs"]:
        """Action parameters of each source, or of some members, from its features."""
        stacked = self._cache.get(self._weights, self._stack, frozen=True)
        kernels, bias, *std = stacked if member is None else [weight[member] for weight in stacked]
        first = self.heads[0]
        mean = torch.baddbmm(bias, features, kernels)
        if first.head.log_std == "linear":
            log_std = torch.baddbmm(std[1], features, std[0])
        elif first.head.log_std == "sde":
            log_std = sde_log_std(features, std[0], expln=first.head.expln)
        else:
            log_std = std[0]
        if first.head.kind == "gaussian" and first.head.mean_clip is None:
            return action_params.gaussian(mean, log_std, first.space)
        return first.to_outputs(mean, log_std.expand_as(mean))

    def _stack(self) -> list[Tensor]:
        means = [(head.mean.weight, head.mean.bias) for head in self.heads]
        stds = [head.std_parameters() for head in self.heads]
        mean, std = (
            [torch.stack(own) for own in zip(*each, strict=True)] for each in (means, stds)
        )
        # The matrix of state-dependent exploration is multiplied as it is.
        sde = self.heads[0].head.log_std == "sde"
        return [*_batched_layers(mean), *(std if sde else _batched_layers(std))]


def _batched_layers(stacked: Sequence[Tensor]) -> list[Tensor]:
    """Stacked kernels `(sources, out, in)` and biases `(sources, out)` in `baddbmm`'s shapes."""
    return [
        layer.transpose(1, 2).contiguous() if layer.ndim == 3 else layer[:, None]
        for layer in stacked
    ]


def declared_encoder(source: Source) -> Encoder:
    """The encoder of a source whose card declares it."""
    assert isinstance(source.encoder, Encoder)
    return source.encoder


def first_unloaded(sources: Sequence[Source]) -> Source:
    """The first source without weights, which raises when it is used; else the first of all."""
    return next((source for source in sources if not source.weights_loaded), sources[0])
