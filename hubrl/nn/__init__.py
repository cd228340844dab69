"""Torch parts that know no sources: freezing, optimizers, losses, manual gradients, bfloat16."""
