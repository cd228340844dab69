"""SB3's own `policy_kwargs` beside a hub's: `hub.agent(..., policy_kwargs=...)`."""

import pytest
from stable_baselines3 import DQN, PPO
from torch import nn

from hubrl import Hub
from hubrl.errors import BadConfig

SHAPE = {"net_arch": [16, 8], "activation_fn": nn.ReLU}


@pytest.fixture(scope="module")
def hub():
    return Hub.from_agents(
        [
            PPO(
                "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=seed
            )
            for seed in (1, 2)
        ]
    )


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_net_arch_shapes_the_networks_of_the_target(hub, level):
    model = PPO(
        env="CartPole-v1", **hub.agent(PPO, level=level, policy_kwargs=SHAPE), device="cpu", seed=0
    )
    layers = [*model.policy.mlp_extractor.policy_net]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [16, 8]
    assert isinstance(layers[1], nn.ReLU)


def test_arguments_of_the_optimizer_stand_beside_those_of_the_hub(hub):
    made = hub.agent(PPO, policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.1}})
    assert made["policy_kwargs"]["optimizer_kwargs"] == {"weight_decay": 0.1, "eps": 1e-5}


def test_a_dqn_has_its_own_net_arch_too(hub):
    model = DQN(env="CartPole-v1", **hub.agent(DQN, policy_kwargs={"net_arch": [16]}), device="cpu")
    assert model.policy.net_arch == [16]


def test_what_the_hub_sets_itself_is_refused(hub):
    with pytest.raises(BadConfig, match="'hub': ...} was given, which the hub sets itself"):
        hub.agent(PPO, policy_kwargs={"hub": {}})


def test_sb3s_arguments_among_the_options_are_sent_to_their_place(hub):
    for make in (lambda: hub.agent(PPO, net_arch=[8]), lambda: hub.policy_kwargs(net_arch=[8])):
        with pytest.raises(BadConfig, match=r"it is SB3's: hub.agent\(..., policy_kwargs="):
            make()
