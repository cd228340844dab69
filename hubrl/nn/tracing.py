"""Traces: an exported graph has no branches that depend on data, and no numpy."""

import torch


def is_tracing() -> bool:
    """Whether torch records a graph of what is computed now (`hubrl.export.graph`)."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
