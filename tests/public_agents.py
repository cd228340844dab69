"""The folder of public agents, where they are at hand."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = Path(
    os.environ.get("HUBRL_CHECKPOINTS", REPOSITORY.parent / "shared" / "checkpoints")
)
