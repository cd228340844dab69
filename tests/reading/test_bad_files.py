"""Files that are missing, damaged, hostile or of a newer format: each is refused with a sentence, and none is executed."""

import base64
import io
import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
import safetensors.torch
import torch
from bad_files import change_card, rewrite
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from untrained import FLAT, normalised, untrained

from hubrl import Hub, Limits
from hubrl.errors import BadFile, SpaceMismatch
from hubrl.reading import read_agent


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
    with pytest.raises(BadFile, match=r"there is no card .*good\.yaml of its weights; write one"):
        read_agent(hub / "good.safetensors")
    with pytest.raises(BadFile, match=r"There is no file .*none\.pth"):
        read_agent(hub / "none.pth")


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
