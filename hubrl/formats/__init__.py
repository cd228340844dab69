"""File formats: source cards, hubs of saved agents, spaces as dictionaries, YAML, atomic writes."""
