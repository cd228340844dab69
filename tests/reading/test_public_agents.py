"""Agents that other people trained and published, read and compared with networks put together here from plain torch."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from public_agents import CHECKPOINTS

from hubrl import Hub
from hubrl.errors import SpaceMismatch
from hubrl.reading import read_agent
from hubrl.routing.target import TargetSpec, check_fit

ZIPS = sorted((CHECKPOINTS / "sb3-zoo").glob("*.zip"))

absent = pytest.param(
    None,
    marks=pytest.mark.skip(f"{CHECKPOINTS} is not there; HUBRL_CHECKPOINTS names it"),
    id="absent",
)
public = pytest.mark.parametrize("path", ZIPS or [absent], ids=lambda path: path.stem)


class Stub:
    """Whatever the pickle names."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


class Permissive(pickle.Unpickler):
    """Fit for files that are known to be good, as these are; `gym`, which they name, is not installed."""

    def find_class(self, module, name):
        return (
            super().find_class(module, name)
            if module.startswith("numpy") and "random" not in module
            else Stub
        )


class Rebuilt:
    """The agent in a zip, from its weights and what is known of each algorithm."""

    def __init__(self, path):
        self.algorithm = path.stem.split("-")[0]
        with zipfile.ZipFile(path) as archive:
            self.weights = torch.load(
                io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True
            )
        relu = self.algorithm in ("dqn", "qrdqn", "sac", "tqc") or path.stem == "ppo-HalfCheetah-v3"
        self.activation = torch.relu if relu else torch.tanh
        pkl = path.with_suffix(".vecnormalize.pkl")
        self.vec = Permissive(io.BytesIO(pkl.read_bytes())).load() if pkl.exists() else None

    @property
    def inputs(self):
        return next(
            tensor.shape[1] for name, tensor in self.weights.items() if name.endswith(".0.weight")
        )

    def observations(self, count):
        """Observations as its task would have them, and some that VecNormalize clips."""
        noise = (
            np.random.default_rng(0).normal(size=(count, self.inputs))
            * np.linspace(0, 15, count)[:, None]
        )
        if self.vec is not None:
            noise = noise * np.sqrt(self.vec.obs_rms.var) + self.vec.obs_rms.mean
        return noise.astype(np.float32)

    def seen(self, observations):
        if self.vec is None:
            return torch.as_tensor(observations)
        normal = (observations - self.vec.obs_rms.mean) / np.sqrt(
            self.vec.obs_rms.var + self.vec.epsilon
        )
        return torch.as_tensor(np.clip(normal, -self.vec.clip_obs, self.vec.clip_obs)).float()

    def linear(self, name, values):
        return torch.nn.functional.linear(
            values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        )

    def stack(self, name, values):
        """The layers of a stack; no activation behind the last, which the caller may add."""
        numbers = sorted(
            int(key.split(".")[-2])
            for key in self.weights
            if key.startswith(f"{name}.") and key.endswith(".weight")
        )
        for number in numbers:
            values = self.linear(f"{name}.{number}", self.activation(values) if number else values)
        return values

    def act(self, observations):
        values = self.seen(observations)
        match self.algorithm:
            case "dqn":
                return self.stack("q_net.q_net", values).argmax(dim=1)
            case "qrdqn":
                return (
                    self.stack("quantile_net.quantile_net", values)
                    .view(len(values), 10, -1)
                    .mean(dim=1)
                    .argmax(dim=1)
                )
            case "sac" | "tqc":
                return torch.tanh(
                    self.linear("actor.mu", torch.relu(self.stack("actor.latent_pi", values)))
                )
            case _:
                computed = self.linear(
                    "action_net", self.activation(self.stack("mlp_extractor.policy_net", values))
                )
                return (
                    computed.clamp(-1, 1) if "log_std" in self.weights else computed.argmax(dim=1)
                )

    def value(self, observations):
        values = self.seen(observations)
        match self.algorithm:
            case "dqn":
                return self.stack("q_net.q_net", values).max(dim=1).values
            case "qrdqn":
                return (
                    self.stack("quantile_net.quantile_net", values)
                    .view(len(values), 10, -1)
                    .mean(dim=1)
                    .max(dim=1)
                    .values
                )
            case "sac" | "tqc":
                asked = torch.cat([values, self.act(observations)], dim=1)
                return (
                    torch.stack([self.stack(f"critic.qf{n}", asked).mean(dim=1) for n in range(2)])
                    .min(dim=0)
                    .values
                )
            case _:
                return self.linear(
                    "value_net", self.activation(self.stack("mlp_extractor.value_net", values))
                ).squeeze(1)


@public
def test_a_public_agent_acts_as_its_network_does(path):
    source, rebuilt = read_agent(path), Rebuilt(path)
    observations = rebuilt.observations(1000)
    expected = rebuilt.act(observations).numpy()
    acted, _ = source.predict(observations, deterministic=True)
    if isinstance(source.actions, spaces.Discrete):
        np.testing.assert_array_equal(acted, expected)
    else:
        np.testing.assert_allclose(acted, expected, atol=1e-5)
    assert len(np.unique(acted, axis=0)) > 1
    assert (source.card.normalisation is None) == (rebuilt.vec is None)


@public
def test_a_public_agent_values_as_its_network_does(path):
    source, rebuilt = read_agent(path), Rebuilt(path)
    observations = rebuilt.observations(1000)
    expected = rebuilt.value(observations)
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        source.value(torch.as_tensor(observations)), expected, atol=1e-5 * scale, rtol=1e-4
    )


@public
def test_a_public_agents_card_describes_it(path):
    card = read_agent(path).card
    assert card.name == path.stem
    assert card.algorithm.lower() == path.stem.split("-")[0]
    assert card.origin == path.name
    assert card.steps > 10_000


def test_public_agents_make_a_hub_that_comes_back(checkpoints, tmp_path):
    zoo = checkpoints / "sb3-zoo"
    hub = Hub.from_agents(
        zoo / f"{name}-HalfCheetah-v3.zip" for name in ("ppo", "sac", "tqc", "trpo", "a2c")
    )
    hub.save(tmp_path / "hub")
    again = Hub.load(tmp_path / "hub")
    observations = Rebuilt(zoo / "ppo-HalfCheetah-v3.zip").observations(20)
    for source, other in zip(hub, again, strict=True):
        assert other.card == source.card
        np.testing.assert_array_equal(
            other.predict(observations, deterministic=True)[0],
            source.predict(observations, deterministic=True)[0],
        )


def test_an_agent_that_saw_the_time_is_refused_by_a_task_without_it(checkpoints):
    source = read_agent(checkpoints / "sb3-zoo" / "ppo-Walker2d-v3.zip")
    sentence = r"The target observes Box\(17,\), source 'ppo-Walker2d-v3' observes Box\(18,\); leave it out, or, .* source.adapted\(constants="
    with pytest.raises(SpaceMismatch, match=sentence):
        check_fit(source, TargetSpec(spaces.Box(-np.inf, np.inf, (17,))))
    check_fit(
        source,
        TargetSpec(
            spaces.Box(-np.inf, np.inf, (18,), np.float64), "outputs", spaces.Box(-1.0, 1.0, (6,))
        ),
    )
