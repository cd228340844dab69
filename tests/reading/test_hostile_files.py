"""Files made to take memory, time or control: each is refused with a sentence, fast, and changes nothing in this process."""

import ctypes
import os
import pickle
import struct
import zipfile

import numpy as np
import pickles
import pytest
import yaml
from gymnasium import spaces
from hostile_files import members, write
from pickles import call, dict_of, name, nested, number, raw_bytes, record, text, tuple_of, whole
from untrained import normalised

from hubrl import Hub, Limits
from hubrl.errors import BadFile, HubrlError
from hubrl.formats.limits import MIB
from hubrl.formats.schema import parse_json, parse_yaml
from hubrl.formats.spaces import space_from_dict
from hubrl.reading import read_agent
from hubrl.reading.pickle_data import Name, parse_pickle
from hubrl.reading.vecnormalize import read_statistics

ARRAY_MODULE = "numpy._core.multiarray"


# The interpreter of pickles


def test_a_pickle_is_read_as_inert_records():
    raw = whole(record(name("a", "B"), x=number(5), y=call(name("os", "system"), text("true"))))
    read = parse_pickle(raw, {Name("a", "B"), Name("os", "system")})
    attributes = read.attributes()
    assert read.function == Name("a", "B")
    assert attributes["x"] == 5
    assert (attributes["y"].function, attributes["y"].args) == (Name("os", "system"), ("true",))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (whole(name("os", "system")), r"it names os\.system, which is not needed here"),
        (
            whole(text("numpy") + text("dtype.__class__") + b"\x93"),
            r"it names numpy\.dtype\.__class__",
        ),
        (whole(name("a", "B") + dict_of(x=number(1)) + b"b"), r"it changes a\.B"),
        (b"\x80\x040.", "the stack is empty"),
        (b"\x80\x04h\x07.", "it is damaged"),
        (whole(b"\x82\x01"), "the opcode EXT1, which data does not need"),
        (whole(b"\x97", 5), "the opcode NEXT_BUFFER"),
        (whole(b"N" * 2000), "more than 1000 opcodes"),
        (whole(b"\x8e" + struct.pack("<Q", 2**40) + b"x"), "expected 1099511627776 bytes"),
        (whole(number(1) + b"r" + struct.pack("<I", 2**32 - 1)) + b"rest", None),
        (b"hello", "it is damaged"),
        (b"", "pickle exhausted before seeing STOP"),
    ],
)
def test_a_pickle_that_is_no_data_is_refused(raw, sentence):
    def read():
        return parse_pickle(raw, {Name("a", "B")}, Limits(pickle_steps=1000))

    if sentence is None:
        assert read() == 1
    else:
        with pytest.raises(ValueError, match=sentence):
            read()


@pytest.mark.parametrize("protocol", range(6))
def test_statistics_of_every_protocol_are_read(tmp_path, protocol):
    vec = normalised(spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,)), b=spaces.Box(-1.0, 1.0, (3,))))
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(vec, protocol))
    read = read_statistics(tmp_path / "vecnormalize.pkl").statistics
    for key, rms in vec.obs_rms.items():
        np.testing.assert_array_equal(read[key], (rms.mean, rms.var))


def interface(address, typestr="<f8"):
    fields = dict_of(
        data=tuple_of(number(address), pickles.FALSE),
        shape=tuple_of(number(4)),
        typestr=text(typestr),
        version=number(3),
    )
    return record(pickles.MOMENTS, __array_interface__=fields)


def lying_dtype():
    """A dtype whose flags hide that it holds objects."""
    inner = tuple_of(call(pickles.DTYPE, text("O"), pickles.FALSE, pickles.TRUE), number(0))
    state = tuple_of(
        number(3),
        text("|"),
        pickles.NONE,
        tuple_of(text("a")),
        b"}(" + text("a") + inner + b"u",
        number(8),
        number(1),
        number(0),
    )
    return call(pickles.DTYPE, text("V8"), pickles.FALSE, pickles.TRUE) + state + b"b"


def reconstructed(shape, dtype, data):
    start = call(
        name(ARRAY_MODULE, "_reconstruct"),
        name("numpy", "ndarray"),
        tuple_of(number(0)),
        raw_bytes(b"b"),
    )
    return (
        start
        + tuple_of(number(1), tuple_of(*map(number, shape)), dtype, pickles.FALSE, data)
        + b"b"
    )


F8 = call(pickles.DTYPE, text("f8"), pickles.FALSE, pickles.TRUE)
OBJECTS = call(pickles.DTYPE, text("O"), pickles.FALSE, pickles.TRUE)
SECRET = ctypes.create_string_buffer(b"a secret of this process, 32 b!!")

HOSTILE_STATISTICS = {
    "memory of this process": pickles.statistics(mean=interface(ctypes.addressof(SECRET))),
    "an address of nothing": pickles.statistics(mean=interface(16)),
    "bytes as objects": pickles.statistics(mean=interface(ctypes.addressof(SECRET), "|O8")),
    "a dtype that lies": pickles.statistics(
        mean=reconstructed((4,), lying_dtype(), raw_bytes(b"A" * 32))
    ),
    "objects from bytes": pickles.statistics(
        mean=reconstructed((4,), OBJECTS, raw_bytes(b"A" * 32))
    ),
    "more shape than bytes": pickles.statistics(
        mean=reconstructed((2**40,), F8, raw_bytes(b"A" * 32))
    ),
    "a negative shape": pickles.statistics(mean=reconstructed((-4,), F8, raw_bytes(b"A" * 32))),
    "an array of strides": pickles.statistics(
        mean=name("numpy", "ndarray") + tuple_of(tuple_of(number(2**30))) + b"\x81"
    ),
    "changed flags of a dtype": pickles.statistics(
        junk=F8 + tuple_of(number(3), text(">"), *[pickles.NONE] * 3, number(9)) + b"b"
    )[:-1]
    + b"0"
    + name("numpy", "float64")
    + dict_of(x=number(1))
    + b"b.",
    "a key of nested tuples": whole(b"}" + nested(60) + number(1) + b"s"),
    "a set of nested tuples": whole(b"\x8f(" + nested(60) + b"\x90"),
    "a mean of nested tuples": pickles.statistics(mean=nested(40)),
    "a shape of nested tuples": pickles.statistics(
        mean=reconstructed((), F8, raw_bytes(b"")).replace(b"(t", b"(" + nested(40) + b"t", 1)
    ),
    "a mean too great for float32": pickles.statistics(mean=pickles.array(np.full(4, 1e308))),
    "a mean that is complex": pickles.statistics(mean=pickles.array(np.full(4, 1j))),
    "a mean of text": pickles.statistics(mean=pickles.array(np.array(["1"] * 4))),
}


@pytest.mark.parametrize("kind", HOSTILE_STATISTICS)
def test_hostile_statistics_are_refused(agent, kind):
    agent.with_name("agent.vecnormalize.pkl").write_bytes(HOSTILE_STATISTICS[kind])
    with pytest.raises(
        BadFile,
        match=r"agent\.vecnormalize\.pkl (was refused as statistics|holds (no|a) VecNormalize|holds statistics)",
    ):
        read_agent(agent)


def test_statistics_leave_numpys_dtypes_alone(tmp_path):
    before = np.dtype("f8").__reduce__()
    path = tmp_path / "vecnormalize.pkl"
    poison = (
        call(pickles.DTYPE, text("f8"))
        + tuple_of(number(3), text(">"), *[pickles.NONE] * 3, number(4), number(1), number(63))
        + b"b"
    )
    path.write_bytes(pickles.statistics(junk=poison))
    read_statistics(path)
    assert np.dtype("f8").__reduce__() == before


# Zips, JSON and YAML


@pytest.mark.parametrize("member", ["data", "policy.pth"])
def test_a_member_that_inflates_beyond_its_zip_is_refused(agent, member):
    write(agent, {**members(agent), member: bytes(80 * MIB)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(
        BadFile,
        match=r"agent\.zip inflates to far more than its own size; agents do not. Widen hubrl\.Limits",
    ):
        read_agent(agent)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_limited_is_refused(agent, compression):
    write(agent, members(agent), compression)
    with pytest.raises(BadFile, match=r"its '.*' is neither stored nor deflated"):
        read_agent(agent)


def test_a_zip_of_many_members_is_refused(agent):
    write(agent, members(agent) | {str(index): b"" for index in range(5000)})
    with pytest.raises(
        BadFile, match=r"agent\.zip has \d+ members, 4096 are allowed; widen hubrl\.Limits"
    ):
        read_agent(agent)
    assert read_agent(agent, limits=Limits(zip_members=10_000)).name == "agent"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &x [1]\nb: *x", r"it has an alias \(\*name\); write the value out"),
        ("a: &x [*x]", "it has an alias"),
        ("[" * 200 + "]" * 200, "it is nested more than 64 deep"),
        ("[" + "1," * 2000 + "]", "it has more than 1000 keys and values"),
    ],
)
def test_yaml_that_grows_is_refused(text, sentence):
    with pytest.raises(yaml.YAMLError, match=sentence):
        parse_yaml(text, Limits(yaml_nodes=1000))


@pytest.mark.parametrize(
    "text",
    [
        "x: !!bool maybe",
        "x: !!int ''",
        "x: !!timestamp now",
        "? [a]\n: b",
        "!!set {a}",
        "x: !!binary é",
        "- <<: 5",
    ],
)
def test_yaml_with_odd_tags_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"card\.yaml (cannot be read as YAML|is not a source card)"):
        read_agent(tmp_path / "card.yaml")


def test_a_card_greater_than_cards_are_is_refused(tmp_path):
    (tmp_path / "card.yaml").write_text("name: a" + " " * 5 * MIB)
    with pytest.raises(
        BadFile, match=r"card\.yaml has \d+ bytes, 4194304 are allowed; widen hubrl\.Limits"
    ):
        read_agent(tmp_path / "card.yaml")


def test_json_that_is_deep_or_long_is_refused():
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json(b"[" * 100 + b"]" * 100)
    with pytest.raises(ValueError, match="its JSON has 30 bytes, 20 are allowed"):
        parse_json(b"[" + b" " * 28 + b"]", Limits(json_bytes=20))
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for encoding in ("utf-16", "utf-32", "utf-32-be"):  # no codec is imported at a file's wish
        with pytest.raises(ValueError, match="decode|Expecting value"):
            parse_json('{"a": 1}'.encode(encoding))


# Spaces and networks


@pytest.mark.parametrize(
    "plain",
    [
        {"type": "Box", "shape": [2**26], "dtype": "float32", "low": 0, "high": 1},
        {"type": "Box", "shape": [1] * 10, "dtype": "float32", "low": 0, "high": 1},
        {"type": "Box", "shape": [4], "dtype": "U1000000", "low": 0, "high": 1},
        {"type": "Box", "shape": [4], "dtype": "longdouble", "low": 0, "high": 1},
        {"type": "Discrete", "n": 2**26},
        {"type": "MultiBinary", "n": 2**26},
        {"type": "MultiDiscrete", "nvec": [2] * 2000},
        {"type": "MultiDiscrete", "nvec": [3, -1]},
        {
            "type": "Dict",
            "spaces": {
                str(n): {"type": "Box", "shape": [2**20], "dtype": "float32", "low": 0, "high": 1}
                for n in range(20)
            },
        },
    ],
    ids=lambda plain: f"{plain['type']} {str(plain)[20:50]}",
)
def test_a_space_of_more_numbers_than_observations_have_is_refused(plain):
    with pytest.raises(BadFile, match=r"does not describe a space \(.*(expected|no size)"):
        space_from_dict(plain)


def test_a_wider_limit_lets_a_greater_space_in():
    space = space_from_dict({"type": "Discrete", "n": 2**24}, Limits(space_numbers=2**24))
    assert space == spaces.Discrete(2**24)


@pytest.fixture
def hub_and_card(tmp_path, agent):
    Hub.from_agents([agent], names=["good"]).save(tmp_path / "hub")
    card = yaml.safe_load((tmp_path / "hub" / "good.yaml").read_text())
    return tmp_path / "hub", card


@pytest.mark.parametrize("widths", [[30_000, 30_000], [65_536, 65_536]])
def test_a_network_greater_than_its_weights_is_refused(hub_and_card, widths):
    folder, card = hub_and_card
    card["network"]["hidden"]["widths"] = widths
    (folder / "good.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(
        BadFile, match=r"The card of source 'good' declares \d+ parameters, its weights have \d+"
    ):
        Hub.load(folder)


def test_a_network_of_a_thousand_layers_is_refused(hub_and_card):
    folder, card = hub_and_card
    card["network"]["hidden"]["widths"] = [8] * 1000
    (folder / "good.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(BadFile, match=r"good\.yaml is not a source card: .*at most 256 items"):
        Hub.load(folder)


def test_a_hub_of_more_sources_than_allowed_is_refused(hub_and_card):
    folder, _ = hub_and_card
    (folder / "hub.yaml").write_text(yaml.safe_dump({"format": 1, "sources": ["good"] * 300}))
    with pytest.raises(BadFile, match=r"has 300 sources, 256 are allowed; widen hubrl\.Limits"):
        Hub.load(folder)


# Files that are none

NOT_REGULAR = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "200 GB of nothing": lambda path: (path.touch(), os.truncate(path, 200 * 2**30)),
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("kind", NOT_REGULAR)
@pytest.mark.parametrize("which", ["good.safetensors", "good.yaml", "hub.yaml"])
def test_only_regular_files_are_read(hub, kind, which):
    (hub / which).unlink()
    NOT_REGULAR[kind](hub / which)
    with pytest.raises(
        BadFile,
        match=r"is no regular file|bytes, \d+ are allowed|There is no file|is no hub|no agent",
    ):
        Hub.load(hub)


@pytest.mark.parametrize("kind", ["a device", "a pipe", "200 GB of nothing"])
def test_statistics_that_are_no_regular_file_are_not_passed_over(agent, kind):
    NOT_REGULAR[kind](agent.with_name("agent.vecnormalize.pkl"))
    with pytest.raises(BadFile, match=r"is no regular file|bytes, \d+ are allowed"):
        read_agent(agent)


@pytest.mark.parametrize("path", ["a" * 300 + ".zip", "a" * 300, "a\0b.zip", "a" * 300 + ".yaml"])
def test_a_name_that_cannot_be_is_refused(tmp_path, path):
    with pytest.raises(HubrlError, match=r"There is no (readable )?file|is no agent"):
        read_agent(f"{tmp_path}/{path}")
