"""The scale on which sources read images: divided by 255 or not, whatever the target's policy does."""

import copy

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from untrained import FLAT, KEYS, Noise, draw, normalised, untrained

from hubrl import BadConfig, Hub, SpaceMismatch, load_agent

BYTES = spaces.Box(0, 255, (3, 36, 36), np.uint8)
FLOATS = spaces.Box(0, 255, (3, 36, 36), np.float32)
UNIT = spaces.Box(0, 1, (3, 36, 36), np.float32)
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


def test_in_a_dict_images_that_are_divided_are_refused(tmp_path):
    space = spaces.Dict(camera=BYTES, joints=FLAT)
    # VecNormalize changes a Dict in place.
    _, source, _ = under_statistics(tmp_path, copy.deepcopy(space))
    with pytest.raises(SpaceMismatch, match="learned from images in a Dict that were not divided"):
        acts(source, space, None)


@pytest.mark.parametrize("unscaled", [False, True], ids=["as they are", "normalize_images=False"])
def test_images_from_0_to_1_reach_a_source_from_0_to_1(unscaled):
    model = untrained(PPO, UNIT, KEYS, policy_kwargs={"normalize_images": not unscaled})
    source, seen = Hub.from_agents([model])[0], draw(BYTES, ROWS)
    unit = (seen / 255).astype(np.float32)
    expected = model.predict(unit, deterministic=True)[0]
    np.testing.assert_array_equal(acts(source, BYTES, seen), expected)
    np.testing.assert_array_equal(acts(source, UNIT, unit), expected)


@pytest.mark.parametrize("space", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_images_from_0_to_1_are_refused_by_a_source_that_reads_them_to_255(space):
    raw = {"normalize_images": False}
    source = Hub.from_agents([untrained(PPO, space, KEYS, policy_kwargs=raw)])[0]
    with pytest.raises(SpaceMismatch, match="reads images from 0 to 255, and those of the target"):
        acts(source, UNIT, None)


def test_boxes_of_three_axes_that_are_no_images_may_have_any_bounds():
    grids = [spaces.Box(-bound, bound, (5, 6, 7)) for bound in (1.0, 2.0)]
    hub = Hub.from_agents([untrained(PPO, grid, KEYS) for grid in grids])
    PPO(env=Noise(grids[0], KEYS), **hub.agent(PPO), device="cpu", n_steps=8, batch_size=8)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
@pytest.mark.parametrize("divided", [False, True])
def test_another_scale_in_policy_kwargs_is_refused(algorithm, divided):
    kwargs = {"normalize_images": divided, "net_arch": [8]}
    source = Hub.from_agents([untrained(DQN, BYTES, KEYS, policy_kwargs=kwargs)])[0]
    made = Hub([source]).agent(algorithm, "hub-pathway", level="outputs")
    made["policy_kwargs"]["normalize_images"] = not divided
    with pytest.raises(BadConfig, match=f"normalize_images={not divided} was given, and the sou"):
        algorithm(env=Noise(BYTES, KEYS), **made, device="cpu")
