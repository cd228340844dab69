"""What tests share: one thread, and the public agents where they are at hand."""

import sys

import pytest
import torch
from public_agents import CHECKPOINTS

torch.set_num_threads(1)


def pytest_configure(config):
    """Most trainings here are too short for a probe, and end before every source has played, or have no callback; the tests of those warnings ask for them by name."""
    config.addinivalue_line("filterwarnings", "ignore:A training of .* steps ended before")
    config.addinivalue_line("filterwarnings", "ignore:No probe. .* steps are too few")
    config.addinivalue_line("filterwarnings", "ignore:.* learns from a hub without HubCallback")


@pytest.fixture(scope="session")
def checkpoints():
    """The folder of public agents."""
    if not CHECKPOINTS.is_dir():
        pytest.skip(
            f"{CHECKPOINTS} is not there; HUBRL_CHECKPOINTS names the folder with sb3-zoo/ and baby-a3c/"
        )
    return CHECKPOINTS


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty folder; returns exit code, output and errors."""
    from hubrl.cli import main  # not before the import hook that checks shapes is there

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hubrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call
