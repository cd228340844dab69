"""Files that are missing, damaged, hostile or of a newer format: each is refused with a sentence, and none is executed."""

import base64
import hashlib
import io
import json
import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from gymnasium import spaces
from sb3_contrib import ARS, CrossQ, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn
from untrained import FLAT, IMAGE, KEYS, Noise, normalised, untrained

from hubrl import Hub, Limits
from hubrl.errors import BadConfig, BadFile, SpaceMismatch
from hubrl.reading import read_agent, read_live


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A path that a hostile file would create; a file that fails to be hostile would be a test of nothing."""
    probe = tmp_path / "probe"
    pickle.loads(pickle.dumps(Hostile(probe)))
    assert probe.exists()
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the file was executed"


@pytest.fixture
def agent(tmp_path):
    """A good agent's zip."""
    path = tmp_path / "agent.zip"
    untrained(PPO).save(path)
    return path


@pytest.fixture
def hub(tmp_path):
    """A good hub's folder, with one source called `good`."""
    Hub.from_agents([untrained(PPO)], names=["good"]).save(tmp_path / "hub")
    return tmp_path / "hub"


def rewrite(path, compression=zipfile.ZIP_STORED, **changes):
    """Change what is in a zip: `data` by a function of the JSON object, `weights` by one of the tensors, others by bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if "data" in changes:
        members["data"] = json.dumps(changes["data"](json.loads(members["data"]))).encode()
    if "weights" in changes:
        saved = io.BytesIO()
        torch.save(changes["weights"](torch.load(io.BytesIO(members["policy.pth"]))), saved)
        members["policy.pth"] = saved.getvalue()
    members |= {
        name.replace("_", "."): content
        for name, content in changes.items()
        if isinstance(content, bytes)
    }
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_card(hub, change):
    """Change the card of the hub's source as plain data."""
    path = hub / "good.yaml"
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))


def cut(path, share=0.6):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_weights_that_would_run_code_are_refused(agent, marker, form):
    saved = io.BytesIO()
    hostile = {"log_std": Hostile(marker)}
    torch.save(hostile, saved) if form == "torch" else pickle.dump(hostile, saved)
    rewrite(agent, policy_pth=saved.getvalue())
    with pytest.raises(
        BadFile,
        match=r"The weights in .*agent\.zip are damaged or hold more than tensors, and were refused",
    ):
        read_agent(agent)


def test_pickles_in_the_data_are_never_opened(agent, marker):
    payload = base64.b64encode(cloudpickle.dumps(Hostile(marker))).decode()

    def poison(data):
        data["policy_kwargs"] = {":type:": "<class 'dict'>", "net_arch": [8]}
        for value in data.values():
            if isinstance(value, dict):
                value[":serialized:"] = payload
        data["lr_schedule"] = {":type:": "<class 'function'>", ":serialized:": payload}
        return data

    before = read_agent(agent)
    rewrite(agent, data=poison)
    observations = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(
        read_agent(agent).predict(observations, deterministic=True)[0],
        before.predict(observations, deterministic=True)[0],
    )


@pytest.mark.parametrize("inside", ["alone", "as an attribute", "in an array"])
def test_statistics_that_would_run_code_are_refused(agent, marker, inside):
    vec = normalised()
    hostile = Hostile(marker)
    if inside == "as an attribute":
        vec.render_mode = hostile
    if inside == "in an array":
        vec.obs_rms.mean = np.array([hostile], dtype=object)
    agent.with_name("agent.vecnormalize.pkl").write_bytes(
        pickle.dumps(hostile if inside == "alone" else vec)
    )
    with pytest.raises(
        BadFile,
        match=r"agent\.vecnormalize\.pkl was refused as statistics of VecNormalize: it names posix\.mkdir",
    ):
        read_agent(agent)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar", ".safetensors"])
def test_bare_weights_that_would_run_code_are_refused(hub, marker, suffix):
    weights = hub / f"bare{suffix}"
    torch.save({"encoder.hidden.0.weight": Hostile(marker)}, weights)
    change_card(hub, lambda card: card.pop("sha256"))
    with pytest.raises(
        BadFile,
        match="were refused"
        if suffix != ".safetensors"
        else "is damaged or not a safetensors file",
    ):
        read_agent(weights, hub / "good.yaml")


def test_a_card_that_would_run_code_is_refused(hub, marker):
    (hub / "good.yaml").write_text(f"!!python/object/apply:os.mkdir ['{marker}']")
    with pytest.raises(BadFile, match=r"good\.yaml cannot be read as YAML"):
        Hub.load(hub)


@pytest.mark.parametrize("name", ["no.zip", "no.pth", "no.safetensors", "no.yaml", "no/where.zip"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(BadFile, match=r"There is no (readable )?file .*no"):
        read_agent(tmp_path / name)


def test_something_that_is_no_agent_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        BadFile,
        match=r"notes\.txt is no agent: expected an SB3 zip, a folder with one, a source's card, or weights",
    ):
        read_agent(tmp_path / "notes.txt")


def test_a_folder_without_an_agent_is_refused(tmp_path):
    with pytest.raises(BadFile, match="holds 0 zips and none is clearly the agent"):
        read_agent(tmp_path)


def test_a_folder_with_several_agents_asks_which(tmp_path):
    for name in ("left", "right"):
        untrained(PPO).save(tmp_path / f"{name}.zip")
    with pytest.raises(
        BadFile, match="holds 2 zips and none is clearly the agent; name the zip itself"
    ):
        read_agent(tmp_path)


def test_statistics_that_were_named_and_are_not_there_are_missed(agent):
    with pytest.raises(BadFile, match=r"There is no readable file of statistics .*gone\.pkl"):
        read_agent(agent, agent.with_name("gone.pkl"))


def test_weights_without_their_card_are_refused(hub):
    (hub / "good.yaml").unlink()
    with pytest.raises(BadFile, match=r"There is no file .*good\.yaml"):
        read_agent(hub / "good.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_zip_that_was_cut_short_is_refused(agent, share):
    cut(agent, share)
    # Near its end the last zip inside is found instead: its weights are zips too.
    with pytest.raises(
        BadFile,
        match=r"agent\.zip is (damaged or not an SB3 zip|a zip without data and policy\.pth)",
    ):
        read_agent(agent)


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
)
def test_a_zip_with_a_flipped_byte_is_refused(agent, compression):
    rewrite(agent, compression)
    with zipfile.ZipFile(agent) as archive:
        member = archive.getinfo("policy.pth")
    raw = bytearray(agent.read_bytes())
    raw[member.header_offset + 30 + len("policy.pth") + member.compress_size // 2] ^= 0xFF
    agent.write_bytes(raw)
    with pytest.raises(BadFile, match=r"agent\.zip is damaged or not an SB3 zip"):
        read_agent(agent)


def test_a_zip_greater_than_its_limit_is_refused(agent):
    with pytest.raises(
        BadFile,
        match=r"agent\.zip has \d+ bytes, 1000 are allowed; widen hubrl\.Limits if it is trusted",
    ):
        read_agent(agent, limits=Limits(file_bytes=1000))


def test_a_zip_with_a_password_is_refused(agent):
    raw = bytearray(agent.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = raw.find(signature)
        while position >= 0:
            raw[position + flags] |= 1
            position = raw.find(signature, position + 4)
    agent.write_bytes(raw)
    with pytest.raises(BadFile, match="is damaged or not an SB3 zip .*(password|encrypted)"):
        read_agent(agent)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_weights_inside_a_zip_that_were_cut_short_are_refused(agent, share):
    with zipfile.ZipFile(agent) as archive:
        raw = archive.read("policy.pth")
    rewrite(agent, policy_pth=raw[: int(len(raw) * share)])
    with pytest.raises(BadFile, match="are damaged or hold more than tensors"):
        read_agent(agent)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_bare_weights_that_were_cut_short_are_refused(hub, suffix, share):
    weights = hub / f"bare{suffix}"
    tensors = Hub.load(hub)[0].tensors()
    torch.save(tensors, weights) if suffix == ".pth" else safetensors.torch.save_file(
        tensors, weights
    )
    change_card(hub, lambda card: card.pop("sha256"))
    assert read_agent(weights, hub / "good.yaml").name == "good"
    cut(weights, share)
    with pytest.raises(BadFile, match="bare.* (is|are) damaged or (not|hold)"):
        read_agent(weights, hub / "good.yaml")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x04.",
        pickle.dumps({"norm_obs": True}),
        pickle.dumps(normalised())[:-40],
    ],
)
def test_statistics_that_are_none_are_refused(agent, content):
    agent.with_name("agent.vecnormalize.pkl").write_bytes(content)
    with pytest.raises(
        BadFile, match=r"agent\.vecnormalize\.pkl (was refused as statistics|holds no) "
    ):
        read_agent(agent)


def statistics_with(**attributes):
    vec = normalised()
    for name, value in attributes.items():
        setattr(vec, name, value)
    return vec


@pytest.mark.parametrize(
    "attributes",
    [
        {"obs_rms": 5},
        {"obs_rms": {"a": 5}},
        {"obs_rms": RunningMeanStd(shape=()), "clip_obs": None},
        {"obs_rms": {"": FLAT}},
        {"epsilon": "small"},
        {"clip_obs": float("nan")},
        {"epsilon": -1.0},
    ],
    ids=lambda attributes: " ".join(attributes),
)
def test_statistics_of_odd_parts_are_refused(agent, attributes):
    agent.with_name("agent.vecnormalize.pkl").write_bytes(
        pickle.dumps(statistics_with(**attributes))
    )
    with pytest.raises(
        BadFile,
        match=r"agent\.vecnormalize\.pkl (holds a VecNormalize without statistics|holds statistics that are not finite|clips at .*)",
    ):
        read_agent(agent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_statistics_that_are_not_finite_are_refused(agent, value):
    vec = normalised()
    vec.obs_rms.var[2] = value
    vec.save(agent.with_name("agent.vecnormalize.pkl"))
    with pytest.raises(BadFile, match="holds statistics that are not finite"):
        read_agent(agent)


def test_statistics_of_other_observations_are_refused(agent):
    normalised(spaces.Box(-1.0, 1.0, (6,))).save(agent.with_name("agent.vecnormalize.pkl"))
    with pytest.raises(SpaceMismatch, match=r"of shape \(6,\), agent 'agent' observes Box\(4,\)"):
        read_agent(agent)


def test_statistics_of_keys_are_refused_by_an_agent_without_keys(agent):
    normalised(spaces.Dict(a=FLAT)).save(agent.with_name("agent.vecnormalize.pkl"))
    with pytest.raises(
        BadFile, match=r"Statistics are given for 'a', the source observes Box\(4,\)"
    ):
        read_agent(agent)


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


def test_a_card_of_a_newer_format_asks_for_an_update(hub):
    change_card(hub, lambda card: card.update(format=99, colour="blue"))
    with pytest.raises(
        BadFile, match=r"good\.yaml is a card of format 99, this hubrl reads up to 1; update hubrl"
    ):
        Hub.load(hub)


def test_a_hub_of_a_newer_format_asks_for_an_update(hub):
    (hub / "hub.yaml").write_text("format: 99\nsources: [good]\n")
    with pytest.raises(
        BadFile, match="is a hub of format 99, this hubrl reads up to 1; update hubrl"
    ):
        Hub.load(hub)


def test_weights_that_are_not_the_cards_are_refused(hub):
    raw = bytearray((hub / "good.safetensors").read_bytes())
    raw[-1] ^= 1
    (hub / "good.safetensors").write_bytes(raw)
    found, said = (
        hashlib.sha256(raw).hexdigest(),
        yaml.safe_load((hub / "good.yaml").read_text())["sha256"],
    )
    with pytest.raises(
        BadFile,
        match=rf"good\.safetensors has sha256 {found}, its card says {said}; the file or the card was changed",
    ):
        Hub.load(hub)


def test_a_builder_that_this_process_has_not_registered_is_refused(hub):
    change_card(
        hub,
        lambda card: card.update(
            network={"kind": "registered", "builder": "os.system", "kwargs": {"command": "true"}}
        ),
    )
    with pytest.raises(
        BadFile,
        match=r"Source 'good' needs a registered network. Unknown network builder 'os\.system'\..* Call hubrl\.register_network first",
    ):
        Hub.load(hub)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda card: card.pop("name"), "name: Field required"),
        (lambda card: card.update(colour="blue"), "colour: Extra inputs are not permitted"),
        (lambda card: card.update(name="../../etc/good"), "name: String should match"),
        (lambda card: card["network"].update(kind="magic"), "network: Input tag 'magic'"),
        (
            lambda card: card["network"].update(hidden={"widths": [0]}),
            r"network\.declared\.hidden\.widths\.0: Input should be greater than 0",
        ),
        (
            lambda card: card["network"].update(hidden={"widths": [10**9]}),
            "Input should be less than or equal to 65536",
        ),
        (
            lambda card: card["network"].update(hidden={"activation": "os.system"}),
            r"network\.declared\.hidden\.activation: Input should be",
        ),
        (
            lambda card: card.update(preprocessing=[{"op": "eval"}]),
            "preprocessing.0: Input tag 'eval'",
        ),
        (
            lambda card: card.update(normalisation={"clip": -1.0}),
            r"normalisation\.clip: Input should be greater than 0",
        ),
    ],
)
def test_a_card_that_cannot_be_is_refused_at_its_first_mistake(hub, change, sentence):
    change_card(hub, change)
    with pytest.raises(BadFile, match=rf"good\.yaml is not a source card: {sentence}|{sentence}"):
        Hub.load(hub)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(
            observation_space={"type": "Box", "shape": [0], "dtype": "float32", "low": 0, "high": 1}
        ),
        lambda card: card.update(action_space={"type": "Discrete", "n": -1}),
    ],
)
def test_a_card_with_a_space_that_cannot_be_is_refused(hub, change):
    change_card(hub, change)
    with pytest.raises(BadFile, match="does not describe a space"):
        Hub.load(hub)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda card: card["network"]["hidden"].update(widths=[9]),
            r"encoder\.hidden\.0\.weight has shape \(8, 4\), the card says \(9, 4\)",
        ),
        (
            lambda card: card["network"]["hidden"].update(widths=[8, 8]),
            r"encoder\.hidden\.2\.weight is missing",
        ),
        (lambda card: card["network"].pop("value"), r"critic\..* is not in its card"),
        (
            lambda card: card["network"].update(
                trunks={"": {"convs": [{"channels": 4, "kernel": 8, "stride": 4}]}}
            ),
            "cannot be built|do not read",
        ),
        (
            lambda card: card["network"].update(trunks={"camera": {}}),
            r"The card has trunks for \['camera'\], its observation space has \[''\]",
        ),
        (
            lambda card: card["network"]["action"].update(kind="q-values"),
            "A q-values head cannot act in Box",
        ),
        (lambda card: card.pop("action_space"), "has an action head and no action space"),
        (lambda card: card.update(normalisation={"keys": ["a"]}), "Statistics are given for 'a'"),
        (
            lambda card: card.update(weights={"encoder.hidden.0.weight": "no.such"}),
            r"holds no weights 'no\.such', which its card",
        ),
    ],
)
def test_a_card_that_is_not_its_weights_is_refused(hub, change, sentence):
    change_card(hub, change)
    with pytest.raises((BadFile, SpaceMismatch), match=sentence):
        Hub.load(hub)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "5", "hello: [", "a: 2024-13-45", "\0", "- " * 50_000, "x: " + "9" * 5000],
    ids=range(8),
)
def test_a_card_that_is_no_yaml_or_no_card_is_refused(hub, text):
    (hub / "good.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"good\.yaml (cannot be read as YAML|is not a source card)"):
        Hub.load(hub)


@pytest.mark.parametrize("name", ["../outside", "/outside", "inside/good", "..", "."])
def test_a_hub_whose_source_lies_outside_its_folder_is_refused(hub, name):
    Hub.load(hub).save(hub.parent / "other")
    for suffix in (".yaml", ".safetensors"):
        (hub.parent / f"outside{suffix}").write_bytes((hub / f"good{suffix}").read_bytes())
    (hub / "hub.yaml").write_text(yaml.safe_dump({"format": 1, "sources": [name]}))
    with pytest.raises(
        BadFile, match=rf"names a source '{name}', which is not a name|There is no (readable )?file"
    ):
        Hub.load(hub)


@pytest.mark.parametrize(
    "text", ["sources: []", "sources: 5", "format: 1", "sources: [good]\ncolour: blue"]
)
def test_a_hub_that_says_nonsense_of_itself_is_refused(hub, text):
    (hub / "hub.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"hub\.yaml is not a hub's card: (sources|colour)"):
        Hub.load(hub)


def test_a_folder_that_is_no_hub_is_refused(tmp_path):
    with pytest.raises(
        BadFile, match=r"is no hub: it has no hub\.yaml; make one with `hubrl hub build`"
    ):
        Hub.load(tmp_path)


def test_a_hub_that_lost_a_file_is_refused(hub):
    (hub / "good.safetensors").unlink()
    with pytest.raises(BadFile, match=r"There is no readable file .*good\.safetensors"):
        Hub.load(hub)
