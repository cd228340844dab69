"""An agent without hubrl: an ordinary SB3 agent, merged or distilled, or a graph of its actions."""

from hubrl.export.chains import NotPlainError
from hubrl.export.graph import ExportedGraph, export_graph
from hubrl.export.merge import Exported, export

__all__ = ["Exported", "ExportedGraph", "NotPlainError", "export", "export_graph"]
