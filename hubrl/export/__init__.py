"""One ordinary SB3 agent from an agent that learned through a hub: merged where exact, distilled otherwise."""

from hubrl.export.plain_model import Exported, NotPlainError, export

__all__ = ["Exported", "NotPlainError", "export"]
