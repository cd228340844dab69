"""Sources of convolutions: NatureCNNs, and a source that ends behind its convolutions."""

from typing import cast

from torch import nn

from hubrl.errors import BadConfig
from hubrl.formats.cards import Declared, Layers, Trunk
from hubrl.sources.source import Source
from hubrl.sources.trunks import NATURE, Encoder, Reader, Trunks


def cut_behind_convolutions(source: Source) -> Source:
    """A source's convolutions, frozen: an encoder alone.

    Raises:
        BadConfig: If it is no network of convolutions with a linear layer behind them.
    """
    network = source.card.network
    trunks: dict[str, Trunk] = network.trunks if isinstance(network, Declared) else {}
    if set(trunks) != {""} or not trunks[""].convs or trunks[""].linear is None:
        raise BadConfig(
            f"reads='convolutions' was given, and source {source.name!r} is no network of "
            "convolutions with a linear layer behind them; leave it out."
        )
    shorter = {"": trunks[""].model_copy(update={"linear": None})}
    rest = {"hidden": Layers(), "action": None, "value": None}
    card = source.card.model_copy(
        update={
            "network": network.model_copy(update={"trunks": shorter, **rest}),
            "actions": None,
            "sha256": None,
        }
    )
    kept = Source.from_card(card).state_dict()
    weights = {name: own for name, own in source.state_dict().items() if name in kept}
    made = Source.from_card(card, weights if source.weights_loaded else None)
    # The digest by which cached features are known is that of the whole source.
    made.card = card.model_copy(update={"sha256": source.card.sha256})
    return made


def is_nature(source: Source) -> bool:
    """Whether a source's card is SB3's NatureCNN over uint8 images, or its convolutions alone."""
    trunks: dict[str, Trunk] = getattr(source.card.network, "trunks", {})
    if set(trunks) != {""}:
        return False
    trunk = trunks[""]
    convs = tuple((conv.channels, conv.kernel, conv.stride) for conv in trunk.convs)
    if convs != NATURE or any(conv.padding for conv in trunk.convs):
        return False
    bytes_in = source.space.dtype is not None and source.space.dtype.name == "uint8"
    plain = bytes_in and source.normaliser is None
    return plain and trunk.activation == "relu"


def has_plain_convolutions(encoder: Encoder) -> bool:
    """Whether the convolutions are torch's; Zoo-Tuning's are layers of its own."""
    return sum(isinstance(part, nn.Conv2d) for part in encoder.trunks.modules()) == len(NATURE)


def first_convolution(source: Source) -> nn.Module | None:
    """The first convolution of a source, or the layer in its place."""
    encoder = source.encoder
    trunks = encoder.trunks if isinstance(encoder, Encoder) else None
    readers = list(trunks.readers) if isinstance(trunks, Trunks) else []
    convs = list(cast("Reader", readers[0]).convs) if readers else []
    return convs[0] if convs else None


def reads_blocks(source: Source) -> bool:
    """Whether a source's layers compute in bfloat16, from the blocks of pixels of `fold_blocks`."""
    return bool(getattr(first_convolution(source), "reads_blocks", False))
