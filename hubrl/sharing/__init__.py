"""Hubs and agents on Hugging Face: model cards, push, pull and search."""

from hubrl.sharing.model_card import agent_model_card, hub_model_card
from hubrl.sharing.repositories import pull_folder, push_folder
from hubrl.sharing.search import Candidate, search_agents

__all__ = [
    "Candidate",
    "agent_model_card",
    "hub_model_card",
    "pull_folder",
    "push_folder",
    "search_agents",
]
