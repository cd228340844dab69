"""A source that ends behind its convolutions."""

from hubrl.errors import BadConfig
from hubrl.formats.cards import Declared, Layers, Trunk
from hubrl.sources.source import Source


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
