"""Environments that SB3 trains on, from a Gymnasium id."""
