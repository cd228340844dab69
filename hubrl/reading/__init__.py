"""Reading agents that other people trained, without executing anything that they wrote."""

from hubrl.reading.agents import read_agent, read_live

__all__ = ["read_agent", "read_live"]
