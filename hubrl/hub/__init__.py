"""A hub of pretrained agents, and what SB3's algorithms take of it."""

from hubrl.hub.hub import Hub
from hubrl.hub.inspect import pathway_weights

__all__ = ["Hub", "pathway_weights"]
