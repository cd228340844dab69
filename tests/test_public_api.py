"""What the package offers, and what it leaves alone."""

import subprocess
import sys

import hubrl


def test_all_is_sorted_and_everything_in_it_is_documented():
    assert list(hubrl.__all__) == sorted(hubrl.__all__)
    assert all(getattr(hubrl, name).__doc__ for name in hubrl.__all__)


def test_the_contract_is_there():
    for name in ("Hub", "Source", "HubCallback", "HubExtractor", "load_agent", "pathway_weights"):
        assert name in hubrl.__all__
    for name in ("from_agents", "save", "load", "agent", "policy_kwargs"):
        assert callable(getattr(hubrl.Hub, name))


def test_importing_does_not_bring_in_what_is_optional():
    code = "import sys, hubrl.public; print([m for m in ('ale_py', 'mujoco', 'matplotlib', 'pandas', 'sb3_contrib', 'cv2', 'envs', 'agents') if m in sys.modules])"
    # SB3 itself imports these where they are installed.
    known = subprocess.run(
        [sys.executable, "-c", code.replace("hubrl.public", "stable_baselines3")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    own = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert own == known
