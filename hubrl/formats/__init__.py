"""File formats: cards of sources, hubs in saved agents, spaces as dictionaries, YAML, and files written whole or not at all."""
