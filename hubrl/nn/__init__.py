"""Torch parts without sources: freezing, optimizers, losses, manual gradients, bfloat16."""
