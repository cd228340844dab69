"""The scale on which sources read images: divided by 255 or not, whatever the target's policy does."""

import copy

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from untrained import FLAT, KEYS, Noise, draw, normalised, untrained

from hubrl import Hub, SpaceMismatch, load_agent

BYTES = spaces.Box(0, 255, (3, 36, 36), np.uint8)
FLOATS = spaces.Box(0, 255, (3, 36, 36), np.float32)
ROWS = 20


def under_statistics(tmp_path, space=BYTES):
    """An agent of VecNormalize over images, its file, and the images as it sees them."""
    vec = normalised(space, KEYS)
    model = untrained(PPO, vec.observation_space, KEYS, env=vec)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "agent.vecnormalize.pkl")
    vec.training = False
    return model, load_agent(tmp_path / "agent.zip"), vec


def acts(source, space, seen, algorithm=PPO):
    """Actions of a hub with the source alone, on a bare target."""
    settings = {"n_steps": 8, "batch_size": 8} if algorithm is PPO else {"buffer_size": 8}
    made = Hub([source]).agent(algorithm, "single", level="outputs")
    target = algorithm(env=Noise(space, KEYS), **made, device="cpu", **settings)
    return target.predict(seen, deterministic=True)[0]


def test_statistics_over_images_are_of_undivided_bytes(tmp_path):
    model, source, vec = under_statistics(tmp_path)
    seen = draw(BYTES, ROWS)
    expected = model.predict(vec.normalize_obs(seen), deterministic=True)[0]
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(source.predict(seen, deterministic=True)[0], expected)
    np.testing.assert_array_equal(acts(source, BYTES, seen), expected)
    assert Hub([source]).policy_kwargs()["normalize_images"] is False


def test_images_of_floats_are_not_divided():
    model = untrained(PPO, FLOATS, KEYS)
    source, seen = Hub.from_agents([model])[0], draw(BYTES, ROWS)
    expected = model.predict(seen.astype(np.float32), deterministic=True)[0]
    np.testing.assert_array_equal(acts(source, FLOATS, seen.astype(np.float32)), expected)
    np.testing.assert_array_equal(acts(source, BYTES, seen), expected)


def test_two_scales_make_no_hub(tmp_path):
    _, source, _ = under_statistics(tmp_path)
    other = Hub.from_agents([untrained(DQN, BYTES, KEYS, "CnnPolicy")])[0]
    with pytest.raises(SpaceMismatch, match="from 0 to 255 .*VecNormalize over images.* of either"):
        Hub([source, other]).agent(PPO)


def test_in_a_dict_the_part_that_is_divided_is_named(tmp_path):
    space = spaces.Dict(camera=BYTES, joints=FLAT)
    # VecNormalize changes a Dict in place.
    _, source, _ = under_statistics(tmp_path, copy.deepcopy(space))
    with pytest.raises(SpaceMismatch, match="learned from images 'camera' that were not divided"):
        acts(source, space, None)
