"""One finished run for all tests of reports."""

import pytest


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    from runs import make_hub  # not before the import hook that checks shapes is there

    return make_hub(tmp_path_factory.mktemp("hubs") / "cartpole")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, hub):
    from runs import make_run

    return make_run(tmp_path_factory.mktemp("finished"), hub, "mine")
