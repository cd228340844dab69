"""The checkout's own tasks: robots with other physics, and Atari games with modes."""

import importlib
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from hubrl.errors import BadConfig, UnknownName
from hubrl.tasks.make_env import check_task, make_env

ROBOTS = ("HalfCheetah", "Walker2d", "Hopper")

PHYSICS = {
    "gravity": lambda model: model.opt.gravity,
    "mass": lambda model: np.concatenate([model.body_mass, model.body_inertia.ravel()]),
    "friction": lambda model: model.geom_friction[:, 0],
    "motors": lambda model: model.actuator_gear[:, 0],
}


def make_robot(robot="HalfCheetah", **kwargs):
    pytest.importorskip("mujoco")
    return gym.make(f"envs.mujoco:hubrl/{robot}-v5", **kwargs)


def make_game(game, **kwargs):
    pytest.importorskip("ale_py")
    return gym.make(f"envs.atari:hubrl/{game}-v0", **kwargs)


def physics(**kwargs):
    model = make_robot(**kwargs).unwrapped.model
    return {name: read(model).copy() for name, read in PHYSICS.items()}


def played(env, n_steps, seed=0):
    """Everything that an environment says to the same actions."""
    env.action_space.seed(seed)
    computed = [env.reset(seed=seed)[0]]
    for _ in range(n_steps):
        observation, reward, *_ = env.step(env.action_space.sample())
        computed += [observation, reward]
    return np.concatenate([np.ravel(part) for part in computed])


def screen(game, n_steps=60, **kwargs):
    """What a game shows after doing nothing for a while."""
    env = make_game(game, **kwargs)
    observation, _ = env.reset(seed=0)
    for _ in range(n_steps):
        observation, *_ = env.step(0)
    return observation


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning")
@pytest.mark.parametrize("robot", ROBOTS)
def test_robots_pass_gymnasiums_checker(robot):
    check_env(
        make_robot(robot, gravity=1.5, motors=0.5, direction="backward").unwrapped,
        skip_render_check=True,
    )


@pytest.mark.parametrize("robot", ROBOTS)
def test_default_physics_are_gymnasiums_bit_for_bit(robot):
    own = played(make_robot(robot), n_steps=50)
    np.testing.assert_array_equal(own, played(gym.make(f"{robot}-v5"), n_steps=50))


@pytest.mark.parametrize("changed", PHYSICS)
def test_a_factor_changes_its_own_physics_and_no_other(changed):
    before, after = physics(), physics(**{changed: 1.5})
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value * 1.5 if name == changed else value)


def test_every_motor_can_have_a_factor_of_its_own():
    factors = [1, 0, 0.5, -1, 2, 1]
    np.testing.assert_array_equal(physics(motors=factors)["motors"], physics()["motors"] * factors)


@pytest.mark.parametrize("changed", PHYSICS)
def test_other_physics_are_felt(changed):
    assert not np.array_equal(
        played(make_robot(**{changed: 0.5}), n_steps=50), played(make_robot(), n_steps=50)
    )


@pytest.mark.parametrize("robot", ROBOTS)
def test_backward_turns_the_forward_reward_round_and_nothing_else(robot):
    computed = {}
    for direction in ("forward", "backward"):
        env = make_robot(robot, direction=direction)
        env.reset(seed=0)
        observation, _, _, _, info = env.step(np.ones(env.action_space.shape, np.float32))
        computed[direction] = (observation, info)
    np.testing.assert_array_equal(computed["forward"][0], computed["backward"][0])
    forward, backward = (info.pop("reward_forward") for _, info in computed.values())
    assert forward == -backward != 0
    assert computed["forward"][1] == computed["backward"][1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gravity": 0}, "gravity=0 is not a positive factor"),
        ({"mass": -1.0}, "mass=-1.0 is not a positive factor"),
        ({"friction": float("nan")}, "friction=nan is not a positive factor"),
        ({"motors": [1, 0]}, "gives 2 factors, the robot has 6 motors"),
        ({"direction": "sideways"}, "direction='sideways' is neither 'forward' nor 'backward'"),
    ],
)
def test_wrong_physics_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_robot(**arguments)


@pytest.mark.parametrize(
    ("game", "arguments"),
    [("Pong", {"mode": 1, "difficulty": 3}), ("Freeway", {"full_action_space": True})],
)
def test_games_pass_gymnasiums_checker(game, arguments):
    check_env(make_game(game, **arguments).unwrapped, skip_render_check=True)


def test_every_game_for_one_player_has_an_id():
    pytest.importorskip("ale_py")
    importlib.import_module("envs.atari")
    games = [spec.name for spec in gym.registry.values() if spec.namespace == "ALE"]
    assert len(games) > 50
    assert all(f"hubrl/{game}-v0" in gym.registry for game in games)


@pytest.mark.parametrize(
    ("game", "arguments"),
    [("Freeway", {"mode": 3}), ("SpaceInvaders", {"mode": 9}), ("Pong", {"difficulty": 1})],
)
def test_modes_and_difficulties_reach_the_emulator(game, arguments):
    default = screen(game)
    np.testing.assert_array_equal(default, screen(game, mode=0, difficulty=0))
    assert not np.array_equal(default, screen(game, **arguments))


def test_a_game_keeps_its_mode_when_it_is_seeded_again():
    env = make_game("Freeway", mode=3)
    first, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(again, make_game("Freeway").reset(seed=0)[0])


def test_a_step_of_the_bare_game_is_one_frame_without_sticky_actions():
    ale = (env := make_game("Pong")).unwrapped.ale
    env.reset(seed=0)
    before = ale.getFrameNumber()
    env.step(0)
    assert ale.getFrameNumber() == before + 1
    assert ale.getFloat("repeat_action_probability") == 0


@pytest.mark.parametrize("arguments", [{"mode": 99}, {"difficulty": 9}])
def test_an_unknown_mode_of_a_game_is_refused_with_those_it_has(arguments):
    with pytest.raises(
        ValueError, match=r"for freeway; its modes are \[0, 1, .*its difficulties \[0, 1\]"
    ):
        make_game("Freeway", **arguments)


def test_atari_vec_env_is_sb3s_stack_of_four_small_grey_frames():
    pytest.importorskip("cv2")
    task = make_game("Pong").spec.id
    env = make_env(task, {"full_action_space": True}, n_envs=2, preprocessing="atari-sb3")
    observations = env.reset()
    assert observations.shape == (2, 84, 84, 4)
    assert observations.dtype == np.uint8
    assert env.observation_space == gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert env.action_space == gym.spaces.Discrete(18)
    before = [ale.getFrameNumber() for ale in env.get_attr("ale")]
    observations, *_ = env.step(np.zeros(2, dtype=int))
    assert [ale.getFrameNumber() for ale in env.get_attr("ale")] == [
        frames + 4 for frames in before
    ]
    assert observations[..., -1].any()
    env.close()


def test_without_ale_py_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py.env", None)
    monkeypatch.delitem(sys.modules, "envs.atari", raising=False)
    with pytest.raises(ImportError, match=r"install hubrl\[atari\]"):
        importlib.import_module("envs.atari")


def test_an_unknown_task_names_ale_py_where_it_is_missing(monkeypatch):
    with pytest.raises(BadConfig) as known:
        check_task("PongNoFrameskip-v99")
    assert "hubrl[atari]" not in str(known.value)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(BadConfig, match=r"which is not installed: pip install 'hubrl\[atari\]'"):
        check_task("PongNoFrameskip-v99")


def signs_of(env, n_steps):
    seen = []
    for _ in range(n_steps):
        _, _, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        seen.append(info["sign"])
    return np.array(seen)


@pytest.mark.filterwarnings(
    "ignore:.*infinity:UserWarning", "ignore:.*different from the unwrapped:UserWarning"
)
@pytest.mark.parametrize("hint", ["sign", "history", "none"])
@pytest.mark.parametrize("kind", ["Reversing", "Shuttle"])
def test_tasks_whose_sign_changes_pass_gymnasiums_checker(kind, hint):
    env = make_robot(f"HalfCheetah{kind}", hint=hint)
    assert env.observation_space.shape == ({"sign": 18, "history": 40, "none": 17}[hint],)
    check_env(env, skip_render_check=True)


def test_the_sign_changes_within_its_range_of_steps():
    env = make_robot("HalfCheetahReversing", every=[5, 9])
    env.reset(seed=3)
    signs = signs_of(env, 200)
    changes = np.flatnonzero(np.diff(signs)) + 1
    assert set(np.diff(changes)) == {5, 6, 7, 8, 9}


def test_a_change_is_seen_before_it_is_felt():
    env = make_robot("HalfCheetahReversing", every=[3, 3])
    observation, info = env.reset(seed=0)
    gears = env.unwrapped.model.actuator_gear
    strength = make_robot().unwrapped.model.actuator_gear[3, 0]
    for _ in range(10):
        assert gears[3, 0] == observation[-1] * strength, "what is seen holds for the coming step"
        assert info["sign"] == observation[-1] == env.get_wrapper_attr("sign")
        observation, _, _, _, info = env.step(env.action_space.sample())


def test_a_reversed_motor_with_a_negated_action_is_the_plain_robot():
    env, plain = make_robot("HalfCheetahReversing", every=[4, 6], hint="none"), make_robot()
    observation, _ = env.reset(seed=1)
    expected, _ = plain.reset(seed=1)
    rng = np.random.default_rng(0)
    plain.unwrapped.set_state(env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy())
    for _ in range(30):
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        turned = action * np.array([1, 1, 1, env.get_wrapper_attr("sign"), 1, 1], np.float32)
        observation, reward, *_ = env.step(turned)
        expected, wanted, *_ = plain.step(action)
        np.testing.assert_allclose(observation, expected, atol=1e-9)
        assert reward == pytest.approx(wanted)


def test_history_is_the_last_observation_and_action():
    env = make_robot("HalfCheetahReversing", hint="history")
    first, _ = env.reset(seed=0)
    assert (first[17:] == 0).all()
    action = env.action_space.sample()
    second = env.step(action)[0]
    assert np.array_equal(second[17:34], first[:17])
    np.testing.assert_allclose(second[34:], action)


def test_a_shuttle_pays_for_moving_as_commanded():
    env = make_robot("HalfCheetahShuttle", every=[4, 6])
    observation, _ = env.reset(seed=2)
    for _ in range(30):
        commanded = observation[-1]
        observation, _, _, _, info = env.step(env.action_space.sample())
        assert info["reward_forward"] == pytest.approx(commanded * info["x_velocity"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hint": "loud"}, "hint='loud' is none of"),
        ({"every": [9, 3]}, "is no range"),
        ({"every": [3]}, "is no range"),
    ],
)
def test_what_an_alternating_task_cannot_be_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_robot("HalfCheetahReversing", **kwargs)


def test_a_preprocessing_that_there_is_not_is_refused():
    with pytest.raises(UnknownName, match="Unknown preprocessing 'atary'. Did you mean 'atari'"):
        make_env("CartPole-v1", preprocessing="atary")


def test_other_robots_alternate_too():
    assert make_robot("Walker2dReversing", motor=1).observation_space.shape == (18,)
    assert make_robot("HopperShuttle").observation_space.shape == (12,)


def landed(**kwargs):
    """What a lander that fires at random says, and how many bodies its world is left with."""
    env = make_env("LunarLander-v3", kwargs, seed=3)
    actions = np.random.default_rng(3).choice([0, 2], size=200)
    computed = [env.reset()]
    for action in actions:
        observations, rewards, dones, _ = env.step(np.array([action]))
        computed += [observations, rewards, dones]
    return np.concatenate([np.ravel(part) for part in computed]), len(
        env.get_attr("world")[0].bodies
    )


def test_frames_that_are_not_read_are_not_rendered_with_equal_episodes():
    pytest.importorskip("Box2D")
    unseen, bodies = landed()
    seen, bodies_with_smoke = landed(render_mode="rgb_array")
    np.testing.assert_array_equal(unseen, seen)
    assert bodies < bodies_with_smoke
