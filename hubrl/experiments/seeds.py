"""Seeds of evaluations."""

EVALUATION_SEED = 10_000
"""Offset from a run's seed to the seed of its evaluations' environments."""
