"""Spaces as plain data, and spaces from the text that SB3 prints of them."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3.common.save_util import data_to_json

from hubrl.errors import BadFile
from hubrl.formats.spaces import describe, fits, space_from_dict, space_to_dict
from hubrl.reading.sb3_spaces import parse_space

UNEVEN = spaces.Box(
    np.array([-np.inf, -1e-7, -2.5], np.float32), np.array([np.inf, 3.3333333, 1e30], np.float32)
)

SPACES = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(-np.inf, np.inf, (2,)),
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Box(0, 255, (84, 84, 4), np.uint8),
    spaces.Box(-3, 5, (2, 2), np.int64),
    spaces.Box(
        np.array([[-1.0, 0.1], [-0.2, -3e-5]], np.float32),
        np.array([[1.0, 1 / 3], [7e5, 0.0]], np.float32),
    ),
    spaces.Box(-2.0, 7.0, ()),
    UNEVEN,
    spaces.Discrete(4),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3, 7]),
    spaces.MultiBinary(5),
    spaces.Dict(
        {
            "b": spaces.Discrete(3, start=1),
            "a": UNEVEN,
            "c": spaces.MultiBinary(2),
            "d": spaces.MultiDiscrete([4, 2]),
        }
    ),
    spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (3, 36, 36), np.uint8),
            "joints": spaces.Box(-np.inf, np.inf, (40,)),
        }
    ),
    spaces.Dict(
        {
            "the robot's eye": spaces.Box(-1.0, 1.0, (2,)),
            'a "quoted" one': spaces.Box(0.0, 1.0, (1,)),
        }
    ),
    spaces.Dict(OrderedDict(z=spaces.Discrete(2), a=spaces.Discrete(3))),
]


def printed(space):
    """What SB3 writes of a space, less the pickle."""
    written = json.loads(data_to_json({"space": space}))["space"]
    written[":serialized:"] = "is never opened"
    return written


@pytest.mark.parametrize("space", SPACES, ids=describe)
def test_a_space_comes_back_from_plain_data_and_yaml(space):
    again = space_from_dict(yaml.safe_load(yaml.safe_dump(space_to_dict(space))))
    assert again == space
    assert again.dtype == space.dtype


@pytest.mark.parametrize("space", SPACES, ids=describe)
def test_a_space_comes_back_from_what_sb3_prints_of_it(space):
    assert space_from_dict(parse_space(printed(space), "observation space")) == space


@pytest.mark.parametrize(
    "space", [space for space in SPACES if isinstance(space, spaces.Dict)], ids=describe
)
def test_a_dict_keeps_the_order_of_its_keys(space):
    assert list(space_from_dict(space_to_dict(space)).spaces) == list(space.spaces)
    assert list(space_from_dict(parse_space(printed(space), "observation space")).spaces) == list(
        space.spaces
    )


def test_bounds_that_are_the_same_everywhere_are_written_once():
    assert space_to_dict(spaces.Box(-np.inf, 1.0, (2, 3))) == {
        "type": "Box",
        "shape": [2, 3],
        "dtype": "float32",
        "low": "-inf",
        "high": 1.0,
    }


def test_bounds_that_were_elided_are_widened_to_what_is_shown():
    low, high = (
        np.linspace(-3, -1, 1200, dtype=np.float32),
        np.linspace(-1, 2, 1200, dtype=np.float32),
    )
    space = space_from_dict(parse_space(printed(spaces.Box(low, high)), "observation space"))
    assert space == spaces.Box(-3.0, 2.0, (1200,))
    above = space_from_dict(
        parse_space(printed(spaces.Box(low + 5, high + 5)), "observation space")
    )
    assert above == spaces.Box(2.0, 7.0, (1200,))


@pytest.mark.parametrize(
    "printed_by_gym",
    [
        {
            ":type:": "<class 'gym.spaces.box.Box'>",
            "dtype": "float32",
            "_shape": [2],
            "low": "[-1. -1.]",
            "high": "[1. 1.]",
        },
        {
            ":type:": "<class 'gym.spaces.box.Box'>",
            "dtype": "float32",
            "shape": [2],
            "low": "[-1. -1.]",
            "high": "[1. 1.]",
            "np_random": None,
        },
    ],
    ids=["gym 0.26", "gym 0.17"],
)
def test_spaces_that_gym_printed_are_read(printed_by_gym):
    assert space_from_dict(parse_space(printed_by_gym, "action space")) == spaces.Box(
        -1.0, 1.0, (2,)
    )


@pytest.mark.parametrize(
    "parts",
    [
        "OrderedDict([('goal', Box(-inf, inf, (2,), float32)), ('seen', Box(0, 255, (3, 8, 8), uint8)), ('mode', Discrete(3))])",
        "{'goal': Box(-inf, inf, (2,), float32), 'seen': Box(0, 255, (3, 8, 8), uint8), 'mode': Discrete(3)}",
    ],
    ids=["gym", "gymnasium"],
)
def test_a_dict_is_read_in_the_ways_it_was_printed(parts):
    space = space_from_dict(
        parse_space(
            {":type:": "<class 'gym.spaces.dict.Dict'>", "spaces": parts}, "observation space"
        )
    )
    assert list(space.spaces) == ["goal", "seen", "mode"]
    assert describe(space) == "Dict(goal: Box(2,), seen: Box(3, 8, 8), mode: Discrete(3))"


def test_a_dict_that_was_printed_with_starts_keeps_its_sizes():
    text = "{'a': MultiDiscrete([2 3], start=[1 1]), 'b': Discrete(5, start=2)}"
    parts = parse_space(
        {":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": text}, "observation space"
    )["spaces"]
    assert parts == {
        "a": {"type": "MultiDiscrete", "nvec": [2, 3]},
        "b": {"type": "Discrete", "n": 5, "start": 2},
    }


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (
            spaces.Tuple([spaces.Discrete(2)]),
            r"A Tuple space of shape None was given; hubrl reads Box, Discrete, MultiBinary, Dict",
        ),
        (spaces.Text(3), "A Text space"),
        (
            spaces.MultiDiscrete([[2, 3], [4, 5]]),
            r"A MultiDiscrete space of shape \(2, 2\) was given",
        ),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])), "A Tuple space"),
    ],
    ids=lambda given: describe(given) if isinstance(given, spaces.Space) else "",
)
def test_a_space_that_hubrl_does_not_know_is_refused(space, sentence):
    with pytest.raises(BadFile, match=sentence):
        space_to_dict(space)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"type": "Tuple"},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": 0.0},
        {"type": "Box", "shape": [2], "dtype": "no dtype", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [2], "dtype": "object", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": [0.0, 0.0, 0.0], "high": 1.0},
        {"type": "Box", "shape": [-2, -2], "dtype": "float32", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [0], "dtype": "float32", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [10**6, 10**6], "dtype": "float32", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": "low", "high": 1.0},
        {"type": "Box", "shape": [2], "dtype": "int8", "low": "-inf", "high": 10**400},
        {"type": "Discrete", "n": 0},
        {"type": "Discrete", "n": 10**18},
        {"type": "Discrete", "n": "many"},
        {"type": "MultiDiscrete", "nvec": [2, 0]},
        {"type": "MultiDiscrete", "nvec": 4},
        {"type": "MultiDiscrete", "nvec": [10**9, 10**9]},
        {"type": "MultiBinary", "n": -3},
        {"type": "Dict", "spaces": [1, 2]},
        {"type": "Dict", "spaces": {"a": None}},
    ],
    ids=str,
)
def test_data_that_describes_no_space_is_refused(plain):
    with pytest.raises(BadFile, match="does not describe a space"):
        space_from_dict(plain)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "The file holds no action space"),
        ({"n": 3}, "The file holds no action space"),
        (
            {":type:": "<class 'gymnasium.spaces.tuple.Tuple'>"},
            "a Tuple, cannot be read .*hubrl reads Box",
        ),
        (
            {":type:": "<class 'gymnasium.spaces.box.Box'>", "dtype": "float32", "_shape": [2]},
            "The action space in the file, a Box",
        ),
        (
            {":type:": "Box", "dtype": "float32", "_shape": [2], "low": "low", "high": "high"},
            "no bound in 'low'",
        ),
        ({":type:": "Discrete", "n": "many"}, "a Discrete, cannot be read"),
        ({":type:": "Dict", "spaces": "{}"}, "a Dict, cannot be read .*no parts"),
        ({":type:": "Dict", "spaces": "{'a': Box(1, 2"}, "unbalanced parentheses"),
        ({":type:": "Dict", "spaces": "{'a': Box(4, 4)}"}, "a Dict, cannot be read"),
        ({":type:": "Dict", "spaces": "{'a': Dict('b': Discrete(2))}"}, "a Dict inside a Dict"),
    ],
    ids=str,
)
def test_text_that_prints_no_space_is_refused(given, sentence):
    with pytest.raises(BadFile, match=sentence):
        parse_space(given, "action space")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(-1, 1, (17,)), "Box(17,)"),
        (spaces.Discrete(4), "Discrete(4)"),
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete(2, 3)"),
        (spaces.MultiBinary(5), "MultiBinary(5)"),
        (
            spaces.Dict(image=spaces.Box(0, 255, (3, 64, 64), np.uint8)),
            "Dict(image: Box(3, 64, 64))",
        ),
    ],
)
def test_a_space_is_described_in_a_few_words(space, words):
    assert describe(space) == words


def test_spaces_fit_whatever_their_bounds_and_the_order_of_their_keys():
    left, right = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (3,))
    assert fits(right, spaces.Box(-7.0, np.inf, (3,)))
    assert fits(
        spaces.Dict(OrderedDict(a=left, b=right)), spaces.Dict(OrderedDict(b=right, a=left))
    )
    assert not fits(right, spaces.Box(-1.0, 1.0, (4,)))
    assert not fits(left, spaces.Discrete(3))
    assert not fits(spaces.Dict(a=left), spaces.Dict(a=left, b=right))
    assert not fits(spaces.Dict(a=left, b=right), spaces.Dict(a=right, b=left))
    assert not fits(spaces.Dict(a=left), left)
