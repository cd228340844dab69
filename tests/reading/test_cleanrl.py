"""Cards of CleanRL's agents: a network of its shape, saved as it saves, acts as it acts."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hubrl import Hub, load_agent

CARDS = Path(__file__).parents[2] / "agents" / "cards"
ROWS = 200


def layer(inputs, outputs, std=1.4):
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, std)
    nn.init.normal_(made.bias, std=0.01)
    return made


def mlp(inputs, hidden, outputs, activation):
    parts = []
    for width in hidden:
        parts += [layer(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*parts, layer(inputs, outputs, 3.0))


class Ppo(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = mlp(4, (64, 64), 1, nn.Tanh)
        self.actor = mlp(4, (64, 64), 2, nn.Tanh)

    def act(self, seen):
        return self.actor(seen).argmax(1)

    def value(self, seen):
        return self.critic(seen)


class PpoContinuous(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = mlp(17, (64, 64), 1, nn.Tanh)
        self.actor_mean = mlp(17, (64, 64), 6, nn.Tanh)
        self.actor_logstd = nn.Parameter(torch.full((1, 6), -0.5))

    def act(self, seen):
        return self.actor_mean(seen).clamp(-1, 1)

    def value(self, seen):
        return self.critic(seen)


class PpoAtari(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()),
            *(layer(64 * 7 * 7, 512), nn.ReLU()),
        )
        self.actor, self.critic = layer(512, 4, 3.0), layer(512, 1)

    def act(self, seen):
        return self.actor(self.network(seen / 255.0)).argmax(1)

    def value(self, seen):
        return self.critic(self.network(seen / 255.0))


class Dqn(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.network = mlp(4, (120, 84), outputs, nn.ReLU)

    def act(self, seen):
        return self.network(seen).argmax(1)

    def value(self, seen):
        return self.network(seen).max(1).values


class C51(Dqn):
    def __init__(self):
        super().__init__(2 * 101)
        self.register_buffer("atoms", torch.linspace(-100, 100, 101))

    def q_values(self, seen):
        return (self.network(seen).view(-1, 2, 101).softmax(2) * self.atoms).sum(2)

    def act(self, seen):
        return self.q_values(seen).argmax(1)

    def value(self, seen):
        return self.q_values(seen).max(1).values


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = layer(17, 256), layer(256, 256), layer(256, 6)
        self.register_buffer("action_scale", torch.ones(1, 6))
        self.register_buffer("action_bias", torch.zeros(1, 6))

    def act(self, seen):
        hidden = functional.relu(self.fc2(functional.relu(self.fc1(seen))))
        return torch.tanh(self.fc_mu(hidden)) * self.action_scale + self.action_bias


def critic():
    return OrderedDict(fc1=layer(23, 256).weight.detach(), fc3=layer(256, 1).weight.detach())


SAVED = {
    "cleanrl-ppo": (Ppo, lambda agent: agent.state_dict()),
    "cleanrl-ppo-continuous": (PpoContinuous, lambda agent: agent.state_dict()),
    "cleanrl-ppo-atari": (PpoAtari, lambda agent: agent.state_dict()),
    "cleanrl-dqn": (Dqn, lambda agent: agent.state_dict()),
    "cleanrl-ddpg": (Actor, lambda agent: (agent.state_dict(), critic())),
    "cleanrl-td3": (Actor, lambda agent: (agent.state_dict(), critic(), critic())),
    "cleanrl-c51": (C51, lambda agent: {
        "model_weights": agent.state_dict(),
        "args": {"env_id": "CartPole-v1", "n_atoms": 101, "v_min": -100.0, "track": False},
    }),
}  # fmt: skip


def observations(card):
    generator = np.random.default_rng(0)
    if card == "cleanrl-ppo-atari":
        coarse = generator.integers(0, 256, (ROWS, 4, 3, 3), dtype=np.uint8)
        return coarse.repeat(28, axis=2).repeat(28, axis=3)
    width = 17 if card.endswith(("continuous", "ddpg", "td3")) else 4
    return generator.normal(size=(ROWS, width)).astype(np.float32)


def test_every_card_of_cleanrl_is_tried():
    assert {path.stem for path in CARDS.glob("cleanrl-*.yaml")} == set(SAVED)


@pytest.mark.parametrize("card", SAVED)
def test_an_agent_of_cleanrl_acts_through_its_card(card, tmp_path):
    torch.manual_seed(1)
    make, save = SAVED[card]
    agent, path = make(), tmp_path / "runs.cleanrl_model"
    torch.save(save(agent), path)
    source = load_agent(path, CARDS / f"{card}.yaml")
    seen = observations(card)
    tensor = torch.as_tensor(seen).float()
    with torch.no_grad():
        expected = agent.act(tensor).numpy()
        value = agent.value(tensor).flatten() if hasattr(agent, "value") else None
    np.testing.assert_allclose(source.predict(seen, deterministic=True)[0], expected, atol=1e-5)
    assert len(np.unique(expected)) > 1
    if value is not None:
        shown = tensor / 255 if seen.dtype == np.uint8 else tensor
        torch.testing.assert_close(source.value(shown), value, rtol=1e-4, atol=1e-4)


def test_a_hub_with_an_agent_of_c51_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    make, save = SAVED["cleanrl-c51"]
    torch.save(save(make()), tmp_path / "c51.cleanrl_model")
    hub = Hub.from_agents([(tmp_path / "c51.cleanrl_model", CARDS / "cleanrl-c51.yaml")])
    hub.save(tmp_path / "hub")
    seen = observations("cleanrl-c51")
    hubs = (hub, Hub.load(tmp_path / "hub"))
    first, again = (each[0].predict(seen, deterministic=True)[0] for each in hubs)
    np.testing.assert_array_equal(first, again)
