"""Environments of a Gymnasium id."""

import pytest

from hubrl.tasks.make_env import make_env


def test_mujoco_prints_a_warning_once_and_a_handler_of_ones_own_stays(capsys):
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    try:
        mujoco.set_mju_user_warning(None)
        make_env("InvertedPendulum-v5", n_envs=2).close()
        warn = mujoco.get_mju_user_warning()
        for message in ("one", "two", "one"):
            warn(message)
        printed = capsys.readouterr().err
        assert printed.endswith("MuJoCo: one\nMuJoCo: two\n")
        own = []
        mujoco.set_mju_user_warning(own.append)
        make_env("InvertedPendulum-v5").close()
        mujoco.get_mju_user_warning()("mine")
        assert own[-1] == "mine"
    finally:
        mujoco.set_mju_user_warning(before)
