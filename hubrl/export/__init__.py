"""One ordinary SB3 agent from one that learned through a hub: merged if exact, else distilled."""

from hubrl.export.chains import NotPlainError
from hubrl.export.merge import Exported, export

__all__ = ["Exported", "NotPlainError", "export"]
