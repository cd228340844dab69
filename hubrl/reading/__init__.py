"""Readers of pretrained agents; nothing in an agent's files is executed."""

from hubrl.reading.agents import read_agent, read_live, read_live_policy

__all__ = ["read_agent", "read_live", "read_live_policy"]
