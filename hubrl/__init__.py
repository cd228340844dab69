"""Transfer in reinforcement learning: a new SB3 agent learns from a hub of pretrained ones."""

from hubrl.hub import Hub
from hubrl.source import Source

__all__ = ["Hub", "Source"]
