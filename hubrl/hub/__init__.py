"""A hub of pretrained agents, and arguments of SB3's algorithms from it."""

from hubrl.hub.hub import Hub
from hubrl.hub.inspect import pathway_weights

__all__ = ["Hub", "pathway_weights"]
