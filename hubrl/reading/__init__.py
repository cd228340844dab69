"""Readers of pretrained agents; nothing in an agent's files is executed."""

from hubrl.reading.agents import read_agent, read_live, read_live_policy
from hubrl.reading.hugging_face import HUGGING_FACE

__all__ = ["HUGGING_FACE", "read_agent", "read_live", "read_live_policy"]
