"""Masks of invalid actions: a source read from MaskablePPO acts under them as MaskablePPO does."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from untrained import FLAT, KEYS, draw, untrained

from hubrl import BadConfig, Hub

ROWS = 200

ACTIONS = [spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3)]


def masks_for(space, model):
    """Masks that leave at least one choice; half of them forbid the likeliest."""
    sizes = {"Discrete": [5], "MultiDiscrete": [3, 4], "MultiBinary": [2, 2, 2]}
    generator = np.random.default_rng(0)
    parts = []
    for size in sizes[type(space).__name__]:
        part = generator.random((ROWS, size)) < 0.5
        part[np.arange(ROWS), generator.integers(size, size=ROWS)] = True
        parts.append(part)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("actions", ACTIONS, ids=lambda space: type(space).__name__)
def test_a_source_acts_under_masks_as_maskable_ppo(actions):
    model = untrained(MaskablePPO, actions=actions)
    source = Hub.from_agents([model])[0]
    seen, masks = draw(FLAT, ROWS), masks_for(actions, model)
    expected = model.predict(seen, deterministic=True, action_masks=masks)[0]
    acted = source.predict(seen, deterministic=True, action_masks=masks)[0]
    np.testing.assert_array_equal(acted, expected)
    free = source.predict(seen, deterministic=True)[0]
    assert (acted != free).any()
    one = source.predict(seen[0], deterministic=True, action_masks=masks[0])[0]
    np.testing.assert_array_equal(one, expected[0])


def test_no_forbidden_action_is_drawn():
    source = Hub.from_agents([untrained(MaskablePPO, actions=KEYS)])[0]
    torch.manual_seed(0)
    masks = np.tile([True, False, True], (ROWS, 1))
    actions, _ = source.predict(draw(FLAT, ROWS), action_masks=masks)
    assert set(actions.tolist()) == {0, 2}


@pytest.mark.parametrize(("algorithm", "actions"), [(DQN, KEYS), (PPO, None)])
def test_an_agent_without_logits_to_mask_is_answered_with_a_sentence(algorithm, actions):
    source = Hub.from_agents([untrained(algorithm, **({"actions": actions} if actions else {}))])[0]
    with pytest.raises(BadConfig, match="was given action_masks and has no logits of choices"):
        source.predict(draw(FLAT, 2), action_masks=np.ones((2, 3), bool))


def test_masks_of_another_number_are_refused():
    source = Hub.from_agents([untrained(MaskablePPO, actions=KEYS)])[0]
    with pytest.raises(BadConfig, match=r"shape \(3,\); expected 3 for each of 2 observations"):
        source.predict(draw(FLAT, 2), action_masks=np.ones(3, bool))
