"""What AtariVecEnv does not do, and who does it instead."""

import subprocess
import sys

import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.tasks.atari_game import run_together
from hubrl.tasks.atari_vec_env import AtariVecEnv
from hubrl.tasks.make_env import make_env


@pytest.mark.parametrize(
    ("task", "kwargs", "sentence"),
    [
        (
            "PongNoFrameskip-v4",
            {"mode": 1},
            r"with mode=1, which ale-py's .* played by AtariWrapper.*'atari-sb3' does so",
        ),
        ("PongNoFrameskip-v4", {"difficulty": 1}, "with difficulty=1, which"),
        ("ALE/Pong-v5", {}, "with frameskip=4, which"),
        (
            "PongNoFrameskip-v4",
            {"max_episode_steps": 100},
            r"not a bare game of ale-py \(TimeLimit\)",
        ),
    ],
)
def test_what_the_vector_environment_cannot_do_is_played_by_sb3s_wrappers_with_a_warning(
    task, kwargs, sentence
):
    with pytest.warns(UserWarning, match=sentence):
        env = make_env(task, kwargs, preprocessing="atari")
    assert isinstance(env, VecFrameStack)
    assert env.reset().shape == (1, 84, 84, 4)
    env.close()
    with pytest.raises(BadConfig, match=sentence.split(" played by")[0].removesuffix(".*")):
        AtariVecEnv(task, kwargs)


def test_sb3s_wrappers_can_be_chosen_without_a_warning():
    env = make_env("PongNoFrameskip-v4", {"mode": 1}, preprocessing="atari-sb3")
    assert isinstance(env, VecFrameStack)
    env.close()


def test_an_argument_that_no_game_takes_is_refused_as_before():
    with pytest.raises(BadConfig, match="cannot be made with {'colour': 1}"):
        make_env("PongNoFrameskip-v4", {"colour": 1}, preprocessing="atari")


def test_sticky_actions_are_ale_pys_own():
    seen = {}
    for probability in (0.0, 1.0):
        for action in (2, 3):
            env = AtariVecEnv("PongNoFrameskip-v4", {"repeat_action_probability": probability})
            env.seed(0)
            env.reset()
            seen[probability, action] = [env.step(np.array([action]))[0] for _ in range(30)][-1]
            env.close()
    assert np.array_equal(seen[1.0, 2], seen[1.0, 3]), (
        "an action that always repeats is never replaced"
    )
    assert not np.array_equal(seen[0.0, 2], seen[0.0, 3])


def test_attributes_are_the_games_and_what_runs_in_c_is_named(breakout):
    assert breakout.get_attr("unwrapped")[0].get_action_meanings() == [
        "NOOP",
        "FIRE",
        "RIGHT",
        "LEFT",
    ]
    assert breakout.env_method("get_action_meanings", indices=1) == [
        ["NOOP", "FIRE", "RIGHT", "LEFT"]
    ]
    assert breakout.env_is_wrapped(Monitor) == [True, True]
    assert breakout.env_is_wrapped(VecFrameStack) == [False, False]
    breakout.set_attr("note", "mine", indices=[0])
    assert breakout.get_attr("note", indices=0) == ["mine"]
    assert not breakout.has_attr("ale")
    with pytest.raises(AttributeError, match="no 'ale': it runs inside ale-py's C"):
        breakout.get_attr("ale")


def test_pictures_are_refused(breakout):
    with pytest.raises(BadConfig, match="draws no pictures; preprocessing='atari-sb3'"):
        breakout.render()
    with pytest.raises(BadConfig, match="draws no pictures"):
        breakout.get_images()


@pytest.mark.parametrize("actions", [[0, 4], [0], [-1, 0]])
def test_actions_that_no_game_has_are_refused_before_a_thread_waits_for_them(breakout, actions):
    breakout.reset()
    with pytest.raises(SpaceMismatch, match=r"were given for 2 games, which act in Discrete\(4\)"):
        breakout.step(np.array(actions))


def test_several_games_come_to_their_ends_in_their_order():
    def game(name, times):
        for _ in range(times):
            played.append(name)
            yield
        return name

    played = []
    assert run_together([game("long", 3), game("short", 1), game("none", 0)]) == [
        "long",
        "short",
        "none",
    ]
    assert played == ["long", "short", "long", "long"]


def test_games_are_known_before_anyone_imports_ale_py():
    code = "from hubrl.tasks.make_env import check_task; check_task('PongNoFrameskip-v4')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_older_ale_py_is_named(monkeypatch):
    monkeypatch.setattr("ale_py.__version__", "0.11.2")
    with pytest.raises(
        BadConfig, match=r"has ale-py 0\.11\.2, whose vector environment is another; 0\.12 or newer"
    ):
        AtariVecEnv("PongNoFrameskip-v4")
