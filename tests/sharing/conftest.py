"""A local Hugging Face and an empty cache for every test of sharing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """The state of a running local hub; huggingface_hub speaks to it and caches in the test's folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from local_hub import serve

    with serve() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "test-token")
        yield hub
