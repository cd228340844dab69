"""Tensors by name from torch and safetensors files; sizes are checked, nothing is executed.

The pickle inside a torch file is read as data (`pickle_data`); a tensor is a view of bytes that are
in the file, and torch's own unpickler is never used.
"""

import hashlib
import io
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hubrl.errors import BadFile
from hubrl.formats.files import is_there, read_file
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.schema import parse_json
from hubrl.formats.spaces import MAX_AXES
from hubrl.reading.pickle_data import Call, Name, Pairs, Persistent, parse_pickle
from hubrl.reading.zip_members import FREE_BYTES, ZipMembers

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Classes of storages by name; tensors of other classes are refused."""

SAFE_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"))

_REBUILD = frozenset(("_rebuild_tensor", "_rebuild_tensor_v2"))

ALLOWED = {
    Name("collections", "OrderedDict"),
    *(Name("torch._utils", name) for name in (*_REBUILD, "_rebuild_parameter")),
    *(Name("torch", name) for name in STORAGES),
}

NAME_LETTERS = 500
"""Letters of a tensor's name."""

_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, RuntimeError,
    NotImplementedError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions of numpy, torch and Python on damaged files."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

Storages = dict[str, Tensor]
"""Storages by key, as flat tensors over the file's bytes."""


class _Storage(NamedTuple):
    """A reference to a storage in a torch file."""

    dtype: torch.dtype
    key: str
    numel: int


def read_weights(
    path: Path, sha256: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Tensor]:
    """Tensors by name from a `.safetensors` file or a file that `torch.save` wrote.

    Args:
        path: The file.
        sha256: Its digest, if it must have one.
        limits: Limits on its size and on the number of tensors.

    Raises:
        BadFile: If it is missing, damaged, holds anything but tensors, or has another digest.
    """
    raw = read_file(path, limits.file_bytes, "readable file")
    found = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and found != sha256:
        raise BadFile(
            f"{path} has sha256 {found}, its card says {sha256[:64]}; the file or the card was "
            "changed, fetch both again."
        )
    return (
        parse_safetensors(raw, str(path), limits)
        if path.suffix == ".safetensors"
        else parse_torch(raw, str(path), limits)
    )


def parse_safetensors(raw: bytes, where: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Tensor]:
    """Tensors by name from the bytes of a `.safetensors` file.

    Raises:
        BadFile: If it is damaged, exceeds a limit, or holds tensors that are no plain numbers.
    """
    try:
        _check_header(raw, limits)
        return safetensors.torch.load(raw)
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        struct.error,
        RuntimeError,
    ) as error:
        raise BadFile(
            f"{where} is damaged or not a safetensors file ({str(error)[:160]})."
        ) from error


def _check_header(raw: bytes, limits: Limits) -> None:
    (length,) = struct.unpack_from("<Q", raw)
    if length > min(limits.json_bytes, len(raw)):
        raise ValueError(f"a header of {length} bytes")
    header = parse_json(raw[8 : 8 + length], limits)
    if len(header) > limits.tensors:
        raise ValueError(f"{len(header)} tensors, {limits.tensors} are allowed")
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] not in SAFE_DTYPES or len(tensor["shape"]) > MAX_AXES:
            raise ValueError(
                f"{name[:60]!r} has dtype {str(tensor['dtype'])[:20]} and "
                f"{len(tensor['shape'])} axes, which hubrl does not read"
            )


def parse_torch(raw: bytes, where: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Tensor]:
    """Tensors by name from the bytes of `torch.save`, in today's format or that before torch 1.6.

    Raises:
        BadFile: If it holds anything but tensors, is damaged, exceeds a limit, or holds NaN.
    """
    try:
        loaded = (
            _parse_zip(raw, where, limits)
            if raw.startswith(b"PK\x03\x04")
            else _parse_legacy(raw, limits)
        )
    except BadFile as error:
        raise BadFile(f"The weights in {where} were refused: {error}") from error
    except _DAMAGE as error:
        reason = (
            str(error).strip("'\"").splitlines()[0][:160]
            if str(error).strip()
            else type(error).__name__
        )
        raise BadFile(
            f"The weights in {where} are damaged or hold more than tensors, and were refused "
            f"({reason})."
        ) from error
    if loaded is None:
        raise BadFile(f"{where} does not hold tensors by name.")
    _check_numbers(loaded, raw, where, limits)
    return loaded


def _check_numbers(tensors: dict[str, Tensor], raw: bytes, where: str, limits: Limits) -> None:
    """Refuse tensors that are far more than their file, or not finite."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > FREE_BYTES + limits.inflation * len(raw):
        raise BadFile(
            f"The tensors in {where} have {total} bytes, {len(raw)} are in the file; widen "
            "hubrl.Limits if it is trusted."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadFile(f"The weights {name!r} in {where} hold NaN or infinity.")


def parse_saved_policy(
    raw: bytes, where: str, limits: Limits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The content of a policy that SB3's `policy.save` wrote.

    Returns:
        The constructor's arguments, as inert data, and the weights by name; None if the file is
        not such a policy.
    """
    try:
        content, find = _open_zip(raw, where, limits, allowed=None)
        parts = content.by_text() if isinstance(content, Pairs) else {}
        data = parts.get("data")
        tensors = (
            _tensors(parts.get("state_dict"), find, limits) if isinstance(data, Pairs) else None
        )
    except (*_DAMAGE, BadFile):
        return None
    if not isinstance(data, Pairs) or tensors is None:
        return None
    _check_numbers(tensors, raw, where, limits)
    return data.by_text(), tensors


def is_saved_policy(path: Path, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether a file is a policy that SB3's `policy.save` wrote, so that it needs no card."""
    if not is_there(path):
        return False
    raw = read_file(path, limits.file_bytes)
    return raw.startswith(b"PK") and parse_saved_policy(raw, str(path), limits) is not None


def _parse_zip(raw: bytes, where: str, limits: Limits) -> dict[str, Tensor] | None:
    """The format since torch 1.6: a zip with `data.pkl` and one member for each storage."""
    content, find = _open_zip(raw, where, limits, allowed=ALLOWED)
    return _tensors(content, find, limits)


def _open_zip(
    raw: bytes, where: str, limits: Limits, *, allowed: Collection[Name] | None
) -> tuple[Any, Callable[[_Storage], Tensor]]:
    """The pickle of a torch zip, and a function that finds its storages."""
    members = ZipMembers(raw, where, limits)
    root = next(
        (name.removesuffix("data.pkl") for name in members.names if name.endswith("/data.pkl")),
        None,
    )
    if root is None:
        raise ValueError("it has no data.pkl")
    if f"{root}byteorder" in members.names and members.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    content = parse_pickle(members.read(f"{root}data.pkl"), allowed, limits)
    storages: Storages = {}

    def find(storage: _Storage) -> Tensor:
        if storage.key not in storages:
            storages[storage.key] = _flat(members.read(f"{root}data/{storage.key}"), storage.dtype)
        return storages[storage.key]

    return content, find


def _parse_legacy(raw: bytes, limits: Limits) -> dict[str, Tensor] | None:
    """The format before torch 1.6: pickles in a row, then each storage behind its length."""
    stream = io.BytesIO(raw)
    if parse_pickle(stream, (), limits) != _LEGACY_MAGIC:
        raise ValueError("it is neither torch's zip nor its older format")
    parse_pickle(stream, (), limits)
    parse_pickle(stream, (), limits)
    content = parse_pickle(stream, ALLOWED, limits)
    keys = parse_pickle(stream, (), limits)
    dtypes: dict[str, torch.dtype] = {}
    _tensors(content, lambda storage: _note(dtypes, storage), limits)
    storages: Storages = {}
    for key in keys:
        if not isinstance(key, str):
            raise TypeError("a storage has no name")
        (numel,) = struct.unpack("<q", stream.read(8))
        dtype = dtypes.get(key, torch.uint8)
        size = numel * dtype.itemsize
        if numel < 0 or size > len(raw) - stream.tell() or key not in dtypes:
            raise ValueError(f"a storage of {numel} numbers in a file of {len(raw)} bytes")
        storages[key] = _flat(stream.read(size), dtype)
    return _tensors(content, lambda storage: storages[storage.key], limits)


def _note(dtypes: dict[str, torch.dtype], storage: _Storage) -> None:
    dtypes.setdefault(storage.key, storage.dtype)


def _flat(raw: bytes, dtype: torch.dtype) -> Tensor:
    whole = len(raw) // dtype.itemsize * dtype.itemsize
    if whole == 0:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        # The bytes are immutable; values read from them are copied.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(raw[:whole], dtype=dtype)


def _tensors(
    content: Any, find: Callable[[_Storage], Tensor | None], limits: Limits
) -> dict[str, Tensor] | None:
    """The tensors of a file by name; None if it holds something else.

    That is a dictionary of tensors, or one or a tuple of such dictionaries, whose tensors are
    called `part.name`. Beside nested dictionaries of tensors anything may stand.
    """
    parts = content if isinstance(content, list | tuple) else None
    pairs = _pairs(content) if parts is None else [(str(n), part) for n, part in enumerate(parts)]
    if pairs is None:
        return None
    nested = [(name, _pairs(part)) for name, part in pairs if isinstance(name, str)]
    inner = [(name, own) for name, own in nested if own and _are_tensors(own)]
    if parts is not None and not inner:
        return None
    named = pairs if not inner else [(f"{name}.{key}", v) for name, own in inner for key, v in own]
    if len(named) > limits.tensors:
        raise ValueError(f"{len(named)} tensors, {limits.tensors} are allowed")
    return _found(named, find)


def _pairs(content: Any) -> list[tuple[Any, Any]] | None:
    """The pairs of a dictionary, ordered or not; None if it is none."""
    if isinstance(content, Call) and content.function == Name("collections", "OrderedDict"):
        content = content.items
    return content.pairs if isinstance(content, Pairs) else None


def _are_tensors(pairs: list[tuple[Any, Any]]) -> bool:
    return all(
        isinstance(name, str)
        and isinstance(value, Call)
        and isinstance(value.function, Name)
        and value.function.module == "torch._utils"
        for name, value in pairs
    )


def _found(
    named: list[tuple[Any, Any]], find: Callable[[_Storage], Tensor | None]
) -> dict[str, Tensor] | None:
    found = {}
    for name, value in named:
        if not isinstance(name, str) or not isinstance(value, Call):
            return None
        if len(name) > NAME_LETTERS:
            raise ValueError(f"a name of {len(name)} letters")
        tensor = _tensor(value, find)
        if tensor is not None:
            found[name] = tensor
    return found


def _tensor(call: Call, find: Callable[[_Storage], Tensor | None]) -> Tensor | None:
    """One tensor, as a view of its storage.

    Raises:
        ValueError: If it reaches beyond its storage, or has more elements than it.
    """
    match call.function, call.args:
        case Name("torch._utils", "_rebuild_parameter"), (Call() as inner, *_):
            return _tensor(inner, find)
        case Name("torch._utils", name), (
            Persistent(key),
            int() as offset,
            tuple() as size,
            tuple() as stride,
            *_,
        ) if name in _REBUILD:
            storage = find(_storage(key))
            return None if storage is None else _view(storage, _storage(key), offset, size, stride)
    raise ValueError("a value is no plain tensor")


def _storage(key: Any) -> _Storage:
    match key:
        case ("storage", Name("torch", kind), str() as key, str(), int() as numel):
            pass
        case ("storage", Name("torch", kind), str() as key, str(), int() as numel, None):
            pass
        case _:
            raise ValueError("a tensor is no view of a storage")
    return _Storage(STORAGES[kind], key, numel)


def _view(
    storage: Tensor, declared: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> Tensor:
    counts = (offset, *size, *stride)
    if (
        len(size) != len(stride)
        or len(size) > MAX_AXES
        or not all(type(n) is int and n >= 0 for n in counts)
    ):
        raise ValueError("a tensor of no shape")
    numel = math.prod(size)
    last = (
        offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else 0
    )
    if storage.dtype != declared.dtype or numel > len(storage) or last >= max(len(storage), 1):
        raise ValueError(f"a tensor of {numel} numbers in a storage of {len(storage)}")
    return (
        storage.as_strided(size, stride, offset)
        if numel
        else torch.empty(size, dtype=storage.dtype)
    )
