"""What tests share: one thread, and the public agents where they are at hand."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def checkpoints():
    """The folder of public agents."""
    folder = Path(os.environ.get("HUBRL_CHECKPOINTS", REPOSITORY.parent / "shared" / "checkpoints"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; HUBRL_CHECKPOINTS names the folder with sb3-zoo/ and baby-a3c/")
    return folder
