"""Weights and safetensors made to do harm: tensors that are not in the file, views without end, headers that lie."""

import io
import json
import struct

import numpy as np
import pickles
import pytest
import torch
from hostile_files import members, write
from pickles import call, name, number, text
from untrained import normalised

from hubrl import Hub, Limits
from hubrl.errors import BadFile
from hubrl.reading import read_agent
from hubrl.reading.weights import parse_torch, read_weights


def torch_zip(content, storage=bytes(64)):
    saved = io.BytesIO()
    write(
        saved, {"archive/data.pkl": content, "archive/data/0": storage, "archive/version": b"3\n"}
    )
    return saved.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            pickles.tensor(2**20, (2**10, 2**10), (2**10, 1)),
            "a tensor of 1048576 numbers in a storage of 16",
        ),
        (pickles.tensor(17, (17,), (1,)), "a tensor of 17 numbers in a storage of 16"),
        (
            pickles.tensor(16, (65536, 65536), (0, 0)),
            "a tensor of 4294967296 numbers in a storage of 16",
        ),
        (pickles.tensor(16, (2, 8), (8, 1), offset=9), "a tensor of 16 numbers in a storage of 16"),
        (pickles.tensor(16, (2, 8), (8, 1), offset=-8), "a tensor of no shape"),
        (pickles.tensor(16, (1,) * 100, (1,) * 100), "a tensor of no shape"),
        (
            pickles.tensor(16, (2, 8), (8, 1), kind="ComplexFloatStorage"),
            r"it names torch\.ComplexFloatStorage",
        ),
        (
            pickles.tensor(16, (2, 8), (8, 1), key=text("../0")),
            r"There is no item named 'archive/data/\.\./0'",
        ),
        (call(name("torch", "Tensor"), number(2**31)), r"it names torch\.Tensor"),
        (call(name("builtins", "bytearray"), number(2**33)), r"it names builtins\.bytearray"),
    ],
)
def test_tensors_that_are_not_in_the_file_are_refused(content, sentence):
    with pytest.raises(
        BadFile,
        match=f"The weights in x were refused|are damaged or hold more than tensors.*{sentence}",
    ):
        parse_torch(torch_zip(pickles.torch_pickle(content)), "x")


def test_a_tensor_made_by_hand_is_read():
    read = parse_torch(
        torch_zip(
            pickles.torch_pickle(pickles.tensor(16, (2, 8), (8, 1))),
            np.arange(16, dtype="f4").tobytes(),
        ),
        "x",
    )
    torch.testing.assert_close(read["log_std"], torch.arange(16.0).reshape(2, 8))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_are_those_that_torch_loads(zipped):
    tensors = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(4, 6).t()[1:],
        "shared": torch.randn(20),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "double": torch.tensor(2.5).double(),
        "whole": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    tensors["view"] = tensors["shared"][5:9].view(2, 2)
    saved = io.BytesIO()
    torch.save(tensors, saved, _use_new_zipfile_serialization=zipped)
    read = parse_torch(saved.getvalue(), "x")
    assert list(read) == list(tensors)
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)


def test_many_views_of_one_storage_are_refused():
    one = torch.zeros(2**22)
    saved = io.BytesIO()
    torch.save({str(index): one for index in range(200)}, saved)
    with pytest.raises(
        BadFile, match=r"The tensors in x have \d+ bytes, \d+ are in the file; widen hubrl\.Limits"
    ):
        parse_torch(saved.getvalue(), "x", Limits(inflation=1))


@pytest.mark.parametrize(
    "header",
    [
        {
            f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            for index in range(30_000)
        },
        {"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}},
        {"a": 5},
        [],
    ],
    ids=[
        "30,000 tensors",
        "1000 axes",
        "float8",
        "overflow",
        "beyond the end",
        "a number",
        "a list",
    ],
)
def test_hostile_safetensors_are_refused(tmp_path, header):
    raw = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(BadFile, match=r"a\.safetensors is damaged or not a safetensors file"):
        read_weights(path)


def test_numbers_beyond_float32_are_refused(agent):
    content = members(agent)
    weights = parse_torch(content["policy.pth"], "x")
    saved = io.BytesIO()
    torch.save({**weights, "value_net.bias": torch.full((1,), 1e300, dtype=torch.float64)}, saved)
    write(agent, {**content, "policy.pth": saved.getvalue()})
    with pytest.raises(BadFile, match=r"critic\.value\.bias holds numbers too great for float32"):
        read_agent(agent)


def test_a_negative_variance_in_a_hub_is_refused(tmp_path, agent):
    normalised().save(str(agent.with_name("agent.vecnormalize.pkl")))
    hub = Hub.from_agents([agent], names=["good"])
    tensors = hub[0].tensors()
    tensors["normaliser.var_0"][1] = -1
    with pytest.raises(BadFile, match=r"normaliser\.var_0 holds negative variances"):
        hub[0].from_card(hub[0].card, tensors)
