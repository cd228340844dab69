"""What tests share: one thread, and the public agents where they are at hand."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = Path(os.environ.get("HUBRL_CHECKPOINTS", REPOSITORY.parent / "shared" / "checkpoints"))


@pytest.fixture(scope="session")
def checkpoints():
    """The folder of public agents."""
    if not CHECKPOINTS.is_dir():
        pytest.skip(f"{CHECKPOINTS} is not there; HUBRL_CHECKPOINTS names the folder with sb3-zoo/ and baby-a3c/")
    return CHECKPOINTS
