"""The members of routing, and how much each of them counts."""
