"""A short slice of `make fuzz` with a fixed seed: bent files of every kind end in an agent or in a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the harness forks, and reads /proc"
)
def test_bent_files_of_every_kind_end_in_an_agent_or_in_a_sentence():
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("harness.py")),
        "--seconds",
        "30",
        "--files",
        "400",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
