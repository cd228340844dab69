"""Acrobot and CartPole with other physics, and the Acrobot sources that were trained on some of them."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from envs.classic import ACROBOT_RANGES, CARTPOLE_RANGES, acrobot_physics, cartpole_physics
from hubrl import BadConfig, Hub
from hubrl.experiments.evaluation import check_hub
from hubrl.tasks.make_env import make_env

REPOSITORY = Path(__file__).parents[1]
TASKS = ("Acrobot", "CartPole")

# Constants of Gymnasium's classes that an argument changes, and their values at the given one.
PHYSICS = {
    ("Acrobot", "link_length_1", 0.5): {"LINK_LENGTH_1": 0.5, "LINK_COM_POS_1": 0.25},
    ("Acrobot", "link_length_2", 0.5): {"LINK_LENGTH_2": 0.5, "LINK_COM_POS_2": 0.25},
    ("Acrobot", "link_mass_1", 1.5): {"LINK_MASS_1": 1.5},
    ("Acrobot", "link_mass_2", 1.5): {"LINK_MASS_2": 1.5},
    ("Acrobot", "link_com_1", 0.2): {"LINK_COM_POS_1": 0.2},
    ("Acrobot", "link_com_2", 0.2): {"LINK_COM_POS_2": 0.2},
    ("Acrobot", "link_moi", 0.4): {"LINK_MOI": 0.4},
    ("CartPole", "masscart", 3.0): {"masscart": 3.0, "total_mass": 3.1},
    ("CartPole", "masspole", 2.0): {"masspole": 2.0, "total_mass": 3.0, "polemass_length": 1.0},
    ("CartPole", "length", 2.0): {"length": 2.0, "polemass_length": 0.2},
    ("CartPole", "force_mag", 6.0): {"force_mag": 6.0},
    ("CartPole", "gravity", 12.0): {"gravity": 12.0},
}

CONSTANTS = {
    "Acrobot": (
        "LINK_LENGTH_1",
        "LINK_LENGTH_2",
        "LINK_MASS_1",
        "LINK_MASS_2",
        "LINK_COM_POS_1",
        "LINK_COM_POS_2",
        "LINK_MOI",
    ),
    "CartPole": (
        "masscart",
        "masspole",
        "total_mass",
        "length",
        "polemass_length",
        "force_mag",
        "gravity",
    ),
}


def make(task, **kwargs):
    return gym.make(f"envs.classic:hubrl/{task}-v1", **kwargs)


def constants(task, **kwargs):
    env = make(task, **kwargs).unwrapped
    return {name: getattr(env, name) for name in CONSTANTS[task]}


def played(env, n_steps=8):
    """Everything that an environment says to the same actions."""
    env.action_space.seed(0)
    computed = [env.reset(seed=0)[0]]
    for _ in range(n_steps):
        observation, reward, *_ = env.step(env.action_space.sample())
        computed += [observation, reward]
    return np.concatenate([np.ravel(part) for part in computed])


@pytest.fixture(scope="module")
def hub():
    return Hub.load(REPOSITORY / "agents" / "sources" / "acrobot")


@pytest.mark.parametrize("task", TASKS)
def test_default_physics_are_gymnasiums_bit_for_bit(task):
    plain = gym.make(f"{task}-v1")
    np.testing.assert_array_equal(played(make(task)), played(plain))
    assert make(task).spec.max_episode_steps == plain.spec.max_episode_steps == 500


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning")
@pytest.mark.parametrize(
    ("task", "draw"), [("Acrobot", acrobot_physics), ("CartPole", cartpole_physics)]
)
def test_drawn_instances_pass_gymnasiums_checker(task, draw):
    check_env(make(task, **draw(1)).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(("task", "name", "value"), PHYSICS)
def test_an_argument_changes_its_own_physics_and_no_other(task, name, value):
    assert constants(task, **{name: value}) == pytest.approx(
        {**constants(task), **PHYSICS[task, name, value]}
    )


@pytest.mark.parametrize(("task", "name", "value"), PHYSICS)
def test_other_physics_are_felt(task, name, value):
    assert not np.array_equal(played(make(task, **{name: value})), played(make(task)))


def test_one_acrobot_does_not_change_the_next():
    make("Acrobot", link_mass_1=1.5)
    assert (
        gym.make("Acrobot-v1").unwrapped.LINK_MASS_1 == make("Acrobot").unwrapped.LINK_MASS_1 == 1.0
    )


@pytest.mark.parametrize(
    ("task", "arguments", "sentence"),
    [
        ("Acrobot", {"link_length_1": 0}, r"link_length_1=0 is not positive\."),
        ("Acrobot", {"link_mass_2": -1.0}, r"link_mass_2=-1\.0 is not positive\."),
        ("Acrobot", {"link_moi": float("nan")}, r"link_moi=nan is not positive\."),
        (
            "Acrobot",
            {"link_com_1": 1.2},
            r"link_com_1=1\.2 is no share of the link's length, from 0 to 1\.",
        ),
        ("CartPole", {"gravity": 0.0}, r"gravity=0\.0 is not positive\."),
        ("CartPole", {"link_moi": 1.0}, "unexpected keyword argument 'link_moi'"),
    ],
)
def test_wrong_physics_are_refused(task, arguments, sentence):
    with pytest.raises(BadConfig, match=sentence):
        make_env(f"envs.classic:hubrl/{task}-v1", arguments)


@pytest.mark.parametrize(
    ("draw", "ranges"), [(acrobot_physics, ACROBOT_RANGES), (cartpole_physics, CARTPOLE_RANGES)]
)
def test_drawn_instances_are_reproducible_and_within_their_ranges(draw, ranges):
    drawn = [draw(seed) for seed in range(200)]
    assert drawn == [draw(seed) for seed in range(200)]
    assert len({tuple(one.values()) for one in drawn}) == 200
    for name, (low, high) in ranges.items():
        values = np.array([one[name] for one in drawn])
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high


def test_an_instance_survives_yaml():
    assert acrobot_physics(1) == yaml.safe_load(yaml.safe_dump(acrobot_physics(1)))
    assert acrobot_physics(1)["link_length_1"] == 0.81


def test_the_studys_targets_are_the_first_ten_instances():
    study = yaml.safe_load(
        (REPOSITORY / "configs" / "studies" / "acrobot.yaml").read_text(encoding="utf-8")
    )
    targets = {name: case["set"]["task_kwargs"] for name, case in study["cases"].items()}
    assert targets == {f"instance-{seed:02}": acrobot_physics(seed) for seed in range(1, 11)}


def test_the_sources_were_trained_on_instances_that_are_no_targets(hub):
    trained_on = {source.name: source.card.task_kwargs for source in hub}
    assert trained_on == {f"instance-{seed}": acrobot_physics(seed) for seed in range(101, 105)}


def test_the_sources_earn_what_their_cards_state(hub):
    for check in check_hub(hub, episodes=10):
        assert check.agrees, f"{check.name}: {check.sentence}, played {check.played}"
