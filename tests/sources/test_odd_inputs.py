"""Inputs that are not what was meant end in a sentence, and are never taken for something else."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from untrained import ARM, FLAT, KEYS, SMALLEST, Noise, untrained

from hubrl import (
    BadConfig,
    BadFile,
    CachedVecEnv,
    Hub,
    NotFinite,
    Source,
    SpaceMismatch,
    UnknownName,
    load_agent,
)
from hubrl.formats.spaces import space_from_dict


@pytest.fixture
def hub():
    return Hub.from_agents([untrained(PPO)])


@pytest.mark.parametrize(
    ("space", "given", "sentence"),
    [
        (spaces.Discrete(5), np.array(5), "it was given 5 to 5; expected codes from 0"),
        (spaces.Discrete(5), np.array(-1), "it was given -1 to -1"),
        (spaces.MultiDiscrete([2, 3]), np.array([[1, 2], [2, 0]]), "it was given 0 to 2"),
        (FLAT, np.array(["a"] * 4), "observation of dtype <U1; expected numbers"),
        (FLAT, np.array([None] * 4), "observation of dtype object; expected numbers"),
        (FLAT, np.zeros(4, complex), "observation of dtype complex128"),
    ],
)
def test_an_observation_that_the_space_does_not_have_is_refused(space, given, sentence):
    source = Hub.from_agents([untrained(PPO, space, KEYS)])[0]
    with pytest.raises(SpaceMismatch, match=sentence):
        source.predict(np.asarray(given))


@pytest.mark.parametrize("ends", [(float("nan"), 1.0), (0.0, float("nan")), (1.0, -1.0)])
def test_bounds_that_bound_nothing_are_refused(ends):
    plain = {"type": "Box", "shape": [2], "dtype": "float32", "low": ends[0], "high": ends[1]}
    with pytest.raises(BadFile, match="bounds that are NaN, or lower above upper"):
        space_from_dict(plain)


class Corner(nn.Module):
    """The first pixels and the vector."""

    def forward(self, parts):
        return torch.cat([parts["camera"].flatten(1)[:, :4], parts["joints"]], dim=1)


@pytest.mark.parametrize("level", ["outputs", "features"])
def test_a_small_image_in_a_dict_is_named(level):
    space = spaces.Dict(camera=spaces.Box(0, 255, (3, 10, 10), np.uint8), joints=FLAT)
    source = Source(
        encoder=Corner(), head=nn.Linear(8, 3), observation_space=space, action_space=KEYS
    )
    made = Hub([source]).agent(PPO, level=level)
    with pytest.raises(SpaceMismatch, match=r"image 'camera' of Box\(3, 10, 10\), .* 36 pixels"):
        PPO(env=Noise(space, KEYS), **made, device="cpu", **SMALLEST[PPO])


@pytest.mark.parametrize(("algorithm", "actions"), [(PPO, ARM), (PPO, KEYS), (DQN, KEYS)])
def test_an_agent_over_a_hub_refuses_nan(algorithm, actions):
    made = Hub.from_agents([untrained(algorithm, FLAT, actions)]).agent(algorithm)
    model = algorithm(env=Noise(FLAT, actions), **made, device="cpu", **SMALLEST[algorithm])
    with pytest.raises(NotFinite, match="The policy was given an observation with NaN"):
        model.predict(np.full(4, np.nan, np.float32), deterministic=True)


@pytest.mark.parametrize("method", ["hub-pathway", "uniform"])
@pytest.mark.parametrize("actions", [ARM, KEYS])
def test_an_agent_over_a_hub_does_not_act_where_its_networks_compute_nan(method, actions):
    made = Hub.from_agents([untrained(PPO, FLAT, actions)]).agent(PPO, method)
    model = PPO(env=Noise(FLAT, actions), **made, device="cpu", **SMALLEST[PPO])
    for layer in model.policy.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == 4:
            layer.weight.data[:] = torch.tensor([1e3, -1e3, 1e3, -1e3])
    great = np.full(4, 3e38, np.float32)  # infinity less infinity
    for deterministic in (True, False):
        # Where SB3's distributions draw the action, torch refuses their parameters.
        with pytest.raises((NotFinite, ValueError), match="NaN for an observation|nan"):
            model.predict(great, deterministic=deterministic)


def test_numbers_too_great_for_the_networks_are_refused():
    encoder = nn.Linear(4, 2, bias=False)
    nn.init.constant_(encoder.weight, 1.0)
    source = Source(
        encoder=encoder, head=nn.Identity(), observation_space=FLAT, action_space=spaces.Discrete(2)
    )
    with pytest.raises(NotFinite, match="compute NaN or infinity for an observation; it may be"):
        source.predict(np.full(4, 3e38, np.float32))


def test_a_level_that_is_none_is_refused(hub):
    with pytest.raises(UnknownName, match="Unknown level 'output'. Did you mean 'outputs'?"):
        hub.agent(PPO, level="output")


def test_things_that_are_no_agents_are_refused(hub, tmp_path):
    model = untrained(PPO)
    with pytest.raises(BadConfig, match=r"^PPO was given; expected an agent: .*Hub.from_agents"):
        load_agent(model)
    with pytest.raises(BadConfig, match="^NoneType was given; expected an agent"):
        load_agent(None)
    with pytest.raises(BadConfig, match="^str was given; expected a hubrl.Source"):
        Hub(["agent.zip"])
    with pytest.raises(BadConfig, match="^PPO was given; expected a list of agents"):
        Hub.from_agents(model)
    with pytest.raises(BadConfig, match=r"^Hub\(ppo-0\) was given to CachedVecEnv; expected what"):
        CachedVecEnv(DummyVecEnv([Noise]), hub)


def test_a_pair_is_read_as_by_a_hub(tmp_path):
    untrained(PPO).save(tmp_path / "agent.zip")
    with pytest.raises(BadFile, match=r"There is no readable file of statistics .*none\.pkl"):
        load_agent((tmp_path / "agent.zip", tmp_path / "none.pkl"))
