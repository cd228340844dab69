"""Seeded mutations of bytes and of plain data."""

import copy
import io
import itertools
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
import yaml

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    127,
    128,
    255,
    256,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**63,
    2**64,
    10**30,
)

VALUES: tuple[Any, ...] = (
    *INTEGERS, 0.0, 1e308, 1e-308, 1e39, float("nan"), float("inf"), float("-inf"), "", "x", "nan", "[1 2]", "\0", "a" * 3000,
    "../../x", None, True, False, [], {}, [1], [[]], {"a": 1}, [1] * 300, "<class 'torch.nn.modules.activation.Tanh'>",
    "<class 'gymnasium.spaces.box.Box'>", "<class 'gymnasium.spaces.discrete.Discrete'>", "<class 'gymnasium.spaces.dict.Dict'>",
)  # fmt: skip


def bend_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Some bytes flipped, cut, doubled, or replaced by odd numbers."""
    changed = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if changed:
            _bend_once(draw, changed)
    return bytes(changed)


def _bend_once(draw: random.Random, raw: bytearray) -> None:
    place, width = draw.randrange(len(raw)), draw.choice((1, 4, 8, 64, 500))
    other = draw.randrange(len(raw))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: raw.__setitem__(place, raw[place] ^ 1 << draw.randrange(8)),
        lambda: raw.__setitem__(
            slice(place, place + 4), struct.pack("<I", draw.choice(INTEGERS) & 0xFFFFFFFF)
        ),
        lambda: raw.__setitem__(
            slice(place, place + 8), struct.pack("<Q", draw.choice(INTEGERS) & 0xFFFFFFFFFFFFFFFF)
        ),
        lambda: raw.__delitem__(slice(place, place + width)),
        lambda: raw.__setitem__(slice(place, place), draw.randbytes(width)),
        lambda: raw.__delitem__(slice(place, None)),
        lambda: raw.__setitem__(slice(place, place + width), raw[other : other + width]),
    )
    draw.choice(changes)()


def bend_data(draw: random.Random, data: Any) -> Any:
    """Plain data with some values replaced, removed, or moved."""
    changed = copy.deepcopy(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return copy.deepcopy(draw.choice(VALUES))
        parent, key = draw.choice(places)
        if draw.random() < 0.15 and isinstance(parent, dict):
            del parent[key]
        elif draw.random() < 0.2:
            source, name = draw.choice(places)
            parent[key] = copy.deepcopy(source[name])
        else:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
    return changed


def _places(data: Any) -> Any:
    """Every pair of a container and a key or index in it."""
    keys = (
        list(data)
        if isinstance(data, dict)
        else range(min(len(data), 50))
        if isinstance(data, list)
        else ()
    )
    for key in keys:
        yield data, key
        yield from _places(data[key])


def bend_zip(draw: random.Random, raw: bytes) -> bytes:
    """An SB3 zip with its JSON, its weights or its own bytes changed."""
    how = draw.random()
    if how < 0.25:
        return bend_bytes(draw, raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if how < 0.7:
        members["data"] = json.dumps(bend_data(draw, json.loads(members["data"]))).encode()
    elif how < 0.85:
        members["policy.pth"] = bend_torch(draw, members["policy.pth"])
    else:
        name = draw.choice(sorted(members))
        members[name] = bend_bytes(draw, members[name])
    made = io.BytesIO()
    method = draw.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    )
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def bend_torch(draw: random.Random, raw: bytes) -> bytes:
    """Weights with a tensor of another shape, dtype, name or value, or with other bytes."""
    if draw.random() < 0.4:
        return bend_bytes(draw, raw)
    return _saved(draw, _bend_tensors(draw, torch.load(io.BytesIO(raw), weights_only=True)))


def bend_nested(draw: random.Random, raw: bytes) -> bytes:
    """A tuple of dictionaries of weights, as CleanRL saves it, with one of them changed."""
    if draw.random() < 0.4:
        return bend_bytes(draw, raw)
    parts = list(torch.load(io.BytesIO(raw), weights_only=True))
    place = draw.randrange(len(parts))
    parts[place] = draw.choice((_bend_tensors(draw, parts[place]), parts, draw.choice(VALUES)))
    return _saved(draw, draw.choice((tuple(parts), parts, {"a": parts}, (tuple(parts),))))


def _saved(draw: random.Random, data: Any) -> bytes:
    saved = io.BytesIO()
    torch.save(data, saved, _use_new_zipfile_serialization=draw.random() < 0.8)
    return saved.getvalue()


def _bend_tensors(draw: random.Random, tensors: dict[str, Any]) -> dict[str, Any]:
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: tensor * float("nan"),
        lambda: tensor.double() * 0 + 1e300,
        lambda: tensor.half(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to_sparse(),
        lambda: torch.zeros(1).expand(draw.choice((2**10, 2**20, 2**31)), 8),
        lambda: tensor[None],
        lambda: tensor.flatten()[:0],
        lambda: draw.choice(VALUES),
    )
    tensors[draw.choice((name, name, name + ".x", "value_net.bias", ""))] = draw.choice(changes)()
    return tensors


def bend_yaml(draw: random.Random, raw: bytes) -> bytes:
    """A card with other values, or other bytes, or an alias."""
    how = draw.random()
    if how < 0.3:
        return bend_bytes(draw, raw)
    if how < 0.35:
        return raw + b"\nnotes: &a [x, x]\ntask_kwargs: {a: *a}\n"
    return yaml.safe_dump(bend_data(draw, yaml.safe_load(raw))).encode()


def bend_safetensors(draw: random.Random, raw: bytes) -> bytes:
    """A `.safetensors` file with another header, or other bytes."""
    if draw.random() < 0.5:
        return bend_bytes(draw, raw)
    (length,) = struct.unpack_from("<Q", raw)
    header = json.dumps(bend_data(draw, json.loads(raw[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def bend_any(draw: random.Random, raw: bytes) -> bytes:
    """Plain data changed where a file is JSON, and bytes in every other."""
    if draw.random() < 0.3:
        return bend_bytes(draw, raw)
    try:
        data = json.loads(raw)
    except ValueError:
        return bend_bytes(draw, raw)
    return json.dumps(bend_data(draw, data)).encode()


CALLS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cbuiltins\ngetattr\n",
)
"""Names that a pickle may ask for."""


def bend_pickle(draw: random.Random, raw: bytes) -> bytes:
    """A pickle with opcodes removed, repeated, exchanged, or with other numbers and names."""
    if draw.random() < 0.2:
        return bend_bytes(draw, raw)
    try:
        begins = [place for _, _, place in pickletools.genops(raw)]
    except ValueError:
        return bend_bytes(draw, raw)
    ops = [raw[begin:end] for begin, end in itertools.pairwise([*begins, len(raw)])]
    for _ in range(draw.choice((1, 1, 2, 4))):
        _bend_opcode(draw, ops)
    return b"".join(ops)


def _bend_opcode(draw: random.Random, ops: list[bytes]) -> None:
    place, other = draw.randrange(len(ops)), draw.randrange(len(ops))
    number = draw.choice(INTEGERS)
    width = number.bit_length() // 8 + 1
    changes: tuple[Callable[[], Any], ...] = (
        lambda: ops.pop(place),
        lambda: ops.insert(place, ops[other]),
        lambda: ops.__setitem__(place, ops[other]),
        lambda: ops.insert(place, draw.choice((b"R", b"b", b"\x81", b"t", b"(", b"0", b"2", b"N", b"}", b"]"))),
        lambda: ops.insert(place, draw.choice(CALLS)),
        lambda: ops.__setitem__(place, draw.choice(CALLS)),
        lambda: ops.__setitem__(
            place, b"\x8a" + bytes([width]) + number.to_bytes(width, "little", signed=True)
        ),
        lambda: ops.__setitem__(slice(place, place), ops[place : place + draw.choice((2, 8, 40))]),
    )  # fmt: skip
    if len(ops) > 1:
        draw.choice(changes)()


def bend_torch_pickle(draw: random.Random, raw: bytes) -> bytes:
    """Weights whose pickle, which lists their tensors, is bent by opcodes."""
    if not zipfile.is_zipfile(io.BytesIO(raw)):
        return bend_pickle(draw, raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            bent = bend_pickle(draw, content) if name.endswith("data.pkl") else content
            archive.writestr(name, bent)
    return made.getvalue()
