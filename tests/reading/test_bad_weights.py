"""Weights and data of an SB3 zip that cannot be an agent."""

import hashlib
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from bad_files import change_card, rewrite
from sb3_contrib import ARS, CrossQ, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn
from untrained import FLAT, IMAGE, KEYS, Noise, untrained

from hubrl import Hub
from hubrl.errors import BadConfig, BadFile, SpaceMismatch
from hubrl.reading import read_agent, read_live


@pytest.mark.parametrize(("member", "others"), [("data", "policy.pth"), ("policy.pth", "data")])
def test_a_zip_that_lacks_a_part_is_refused(agent, member, others):
    with zipfile.ZipFile(agent) as archive:
        content = archive.read(others)
    with zipfile.ZipFile(agent, "w") as archive:
        archive.writestr(others, content)
    with pytest.raises(BadFile, match=rf"agent\.zip is a zip without {member}; SB3 saves both"):
        read_agent(agent)


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"], ids=range(5)
)
def test_a_zip_whose_data_is_no_object_is_refused(agent, data):
    rewrite(agent, data=lambda _: None)
    with zipfile.ZipFile(agent) as archive:
        weights = archive.read("policy.pth")
    with zipfile.ZipFile(agent, "w") as archive:
        archive.writestr("data", data)
        archive.writestr("policy.pth", weights)
    with pytest.raises(BadFile, match=r"agent\.zip is (damaged or )?not an SB3 zip"):
        read_agent(agent)


@pytest.mark.parametrize(
    "loaded",
    [[torch.zeros(2)], torch.zeros(2), {"log_std": 5}, {"log_std": None}],
    ids=["list", "tensor", "number", "nothing"],
)
def test_weights_that_are_not_tensors_by_name_are_refused(agent, loaded):
    rewrite(agent, weights=lambda _: loaded)
    with pytest.raises(BadFile, match=r"agent\.zip does not hold tensors by name"):
        read_agent(agent)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(agent, value):
    def spoil(tensors):
        tensors["action_net.weight"][1, 2] = value
        return tensors

    rewrite(agent, weights=spoil)
    with pytest.raises(
        BadFile, match=r"The weights 'action_net\.weight' in .*agent\.zip hold NaN or infinity"
    ):
        read_agent(agent)


def test_nan_in_a_hubs_weights_is_refused(hub):
    tensors = Hub.load(hub)[0].tensors()
    tensors["action.mean.bias"][0] = np.nan
    safetensors.torch.save_file(tensors, hub / "good.safetensors")
    change_card(
        hub,
        lambda card: card.update(
            sha256=hashlib.sha256((hub / "good.safetensors").read_bytes()).hexdigest()
        ),
    )
    with pytest.raises(
        BadFile,
        match=r"The weights of source 'good' do not fit: action\.mean\.bias holds NaN or infinity",
    ):
        Hub.load(hub)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=["meta", "sparse", "complex"],
)
def test_weights_that_are_no_plain_numbers_are_refused(agent, tensor):
    rewrite(agent, weights=lambda tensors: {**tensors, "log_std": tensor})
    with pytest.raises(BadFile, match=r"agent\.zip (are no plain numbers|are damaged)"):
        read_agent(agent)


@pytest.mark.parametrize(
    "name",
    [
        "mlp_extractor.policy_net.0.scale",
        "extra.weight",
        "features_extractor.extra.weight",
        "vf_features_extractor.cnn",
    ],
)
def test_weights_that_sb3_does_not_have_are_refused(agent, name):
    rewrite(agent, weights=lambda tensors: {**tensors, name: torch.zeros(2)})
    with pytest.raises(
        BadFile,
        match=rf"holds weights that SB3's networks do not have \('{name}'\); make a hubrl\.Source from your own modules",
    ):
        read_agent(agent)


def test_weights_that_are_missing_are_named(agent):
    rewrite(
        agent,
        weights=lambda tensors: {
            name: tensor for name, tensor in tensors.items() if name != "value_net.bias"
        },
    )
    with pytest.raises(
        BadFile,
        match=r"holds no weights 'value_net\.bias'; its network is not SB3's, make a hubrl\.Source",
    ):
        read_agent(agent)


def test_weights_of_another_shape_are_refused(agent):
    rewrite(agent, weights=lambda tensors: {**tensors, "action_net.weight": torch.zeros(2, 9)})
    with pytest.raises(
        BadFile, match=r"action\.mean\.weight has shape \(2, 9\), the card says \(2, 8\)"
    ):
        read_agent(agent)


@pytest.mark.parametrize(
    "change",
    [
        {"policy_kwargs": {"use_sde": True, "clip_mean": "much"}},
        {"policy_kwargs": {"features_extractor_kwargs": {"hub": 5}}},
        {
            "action_space": {
                ":type:": "<class 'gymnasium.spaces.discrete.Discrete'>",
                "n": "3",
                "start": "0",
            }
        },
        {
            "action_space": {
                ":type:": "<class 'gymnasium.spaces.discrete.Discrete'>",
                "n": "0",
                "start": "0",
            }
        },
        {
            "observation_space": {
                ":type:": "Box",
                "dtype": "no dtype",
                "_shape": [4],
                "low": "-1",
                "high": "1",
            }
        },
        {
            "observation_space": {
                ":type:": "Box",
                "dtype": "float32",
                "_shape": [10**9, 10**9],
                "low": "-1",
                "high": "1",
            }
        },
        {
            "observation_space": {
                ":type:": "Box",
                "dtype": "float32",
                "_shape": [-4],
                "low": "-1",
                "high": "1",
            }
        },
        {"observation_space": {":type:": "Tuple"}},
        {"observation_space": 7},
        {"num_timesteps": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [PPO, SAC], ids=lambda algorithm: algorithm.__name__)
def test_data_that_cannot_be_ends_in_no_traceback(tmp_path, algorithm, change):
    untrained(algorithm, use_sde=True).save(tmp_path / "agent.zip")
    rewrite(tmp_path / "agent.zip", data=lambda data: {**data, **change})
    try:
        read_agent(tmp_path / "agent.zip")
    except (BadFile, BadConfig, SpaceMismatch) as error:
        assert str(error).endswith(".")  # noqa: PT017 - a value that does not matter is read, every other is refused


def test_a_q_network_for_actions_that_are_no_choice_is_refused(tmp_path):
    untrained(DQN, actions=KEYS).save(tmp_path / "agent.zip")
    arm = {
        ":type:": "<class 'gymnasium.spaces.box.Box'>",
        "dtype": "float32",
        "_shape": [2],
        "low": "-1",
        "high": "1",
    }
    rewrite(tmp_path / "agent.zip", data=lambda data: {**data, "action_space": arm})
    with pytest.raises(
        BadFile, match=r"agent\.zip describes an agent that cannot be \(KeyError: 'n'\)"
    ):
        read_agent(tmp_path / "agent.zip")


class MyNatureCNN(NatureCNN):
    """Its name says NatureCNN and its weights fit; what it computes is another thing."""

    def forward(self, observations):
        return super().forward(1 - observations)


class Tenth(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations) / 10


class Tanh(nn.Module):
    def forward(self, values):
        return -values.tanh()


@pytest.mark.parametrize(
    ("observations", "extractor", "kwargs"),
    [(FLAT, Tenth, {}), (IMAGE, MyNatureCNN, {"features_dim": 8})],
    ids=["flat", "image"],
)
def test_a_features_extractor_of_ones_own_is_refused(tmp_path, observations, extractor, kwargs):
    kwargs = {"features_extractor_class": extractor, "features_extractor_kwargs": kwargs}
    model = untrained(PPO, observations, policy_kwargs=kwargs)
    model.save(tmp_path / "agent.zip")
    sentence = rf"has a features extractor of its own \(.*{extractor.__name__}\), which hubrl cannot declare; make a hubrl\.Source from your own"
    with pytest.raises(BadFile, match=rf"agent\.zip {sentence}"):
        read_agent(tmp_path / "agent.zip")
    with pytest.raises(BadFile, match=rf"the model 'live' {sentence}"):
        read_live(model, "live")


@pytest.mark.parametrize(
    "activation", [Tanh, nn.Hardtanh], ids=lambda activation: activation.__module__
)
def test_an_activation_that_hubrl_does_not_have_is_refused(tmp_path, activation):
    untrained(PPO, policy_kwargs={"activation_fn": activation}).save(tmp_path / "agent.zip")
    with pytest.raises(
        BadFile,
        match=rf"has the activation .*{activation.__name__}; hubrl declares tanh|Tanh, .*hubrl\.Source",
    ):
        read_agent(tmp_path / "agent.zip")


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [(RecurrentPPO, {"n_steps": 8, "batch_size": 8}), (ARS, {}), (CrossQ, {"buffer_size": 8})],
    ids=["RecurrentPPO", "ARS", "CrossQ"],
)
def test_an_algorithm_that_hubrl_does_not_read_is_refused(tmp_path, algorithm, kwargs):
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    algorithm(policy, Noise(), device="cpu", policy_kwargs={"net_arch": [8]}, **kwargs).save(
        tmp_path / "agent.zip"
    )
    with pytest.raises(
        BadFile,
        match=r"holds a policy of module 'sb3_contrib\..*'; hubrl reads PPO, A2C, TRPO, MaskablePPO, DQN",
    ):
        read_agent(tmp_path / "agent.zip")


def test_a_policy_class_of_ones_own_is_refused(agent):
    rewrite(
        agent,
        data=lambda data: {
            **data,
            "policy_class": {**data["policy_class"], "__module__": "my.policies"},
        },
    )
    with pytest.raises(BadFile, match=r"holds a policy of module 'my\.policies'; hubrl reads PPO"):
        read_agent(agent)
    rewrite(agent, data=lambda data: {**data, "policy_class": None})
    with pytest.raises(BadFile, match="holds a policy it does not name; hubrl reads PPO"):
        read_agent(agent)
