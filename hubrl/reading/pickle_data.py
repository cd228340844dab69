"""Pickles as data: an interpreter of opcodes that calls nothing and imports nothing.

`pickle.Unpickler` builds the objects that a file asks for, even where `find_class` allows few
names: numpy and torch then trust sizes, addresses and flags of the file. Here a name is a `Name`,
a call is a `Call`, and a dictionary is a list of pairs, so that nothing of the file is run, hashed
or compared. Readers take the records they need.
"""

import io
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from hubrl.formats.limits import DEFAULT_LIMITS, Limits


class Name(NamedTuple):
    """A global name of a pickle; it is never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Pairs:
    """A dictionary as its pairs, in order; keys are not hashed."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def by_text(self) -> dict[str, Any]:
        """The values under text keys, by key."""
        return {key: value for key, value in self.pairs if isinstance(key, str)}


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for; it is never made.

    Args:
        function: Usually a `Name`.
        args: Usually a tuple.
    """

    function: Any
    args: Any
    state: Any = None
    """State of BUILD."""
    items: Pairs = field(default_factory=Pairs)
    """Items set on the result of the call (ordered dictionaries)."""

    def attributes(self) -> dict[str, Any]:
        """The attributes that BUILD would set, by name."""
        state = (
            self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        )
        return state.by_text() if isinstance(state, Pairs) else {}


class Persistent(NamedTuple):
    """A reference to something outside the pickle (torch's storages)."""

    key: Any


def parse_pickle(
    raw: bytes | IO[bytes], allowed: Collection[Name] | None, limits: Limits = DEFAULT_LIMITS
) -> Any:
    """The content of a pickle as inert data.

    Args:
        raw: The pickle; a stream is left behind its end.
        allowed: Names that may occur; all of them if None, since none is resolved.
        limits: Limits on its opcodes.

    Raises:
        ValueError: If it is damaged, names anything that is not allowed, or exceeds a limit.
    """
    stream = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    machine = _Machine(None if allowed is None else frozenset(allowed))
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step >= limits.pickle_steps:
                raise ValueError(f"it has more than {limits.pickle_steps} opcodes")
            machine.run(opcode.name, argument)
        return machine.pop()
    except (IndexError, KeyError, UnicodeError, OverflowError, TypeError, AttributeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {str(error)[:100]})") from error


_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}

_LITERALS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)

_PUTS, _GETS = (
    frozenset(("PUT", "BINPUT", "LONG_BINPUT")),
    frozenset(("GET", "BINGET", "LONG_BINGET")),
)

_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "EMPTY_DICT": Pairs,
}


_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Opcodes of tuples by their length."""


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, allowed: frozenset[Name] | None) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        """Execute one opcode."""
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            last_first = [self.pop() for _ in range(_TUPLES[opcode])]
            self.stack.append(tuple(last_first[::-1]))
        elif opcode in _PUTS:
            self.memo[int(argument)] = self.stack[-1]
        elif opcode in _GETS:
            self.stack.append(self.memo[int(argument)])
        else:
            step = getattr(self, f"_{opcode.lower()}", None)
            if step is None:
                raise ValueError(f"it has the opcode {opcode}, which data does not need")
            step(argument)

    def pop(self) -> Any:
        """The top of the stack, above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("it is damaged (the stack is empty)")
        return self.stack.pop()

    def _pop_marked(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _proto(self, _: Any) -> None:
        """Protocols differ in their opcodes alone."""

    _frame = _stop = _proto

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _pop(self, _: Any) -> None:
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self.pop()

    def _pop_mark(self, _: Any) -> None:
        self._pop_marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_marked()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._pop_marked())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        self.stack.append(Pairs(_paired(self._pop_marked())))

    def _append(self, _: Any) -> None:
        value = self.pop()
        self._top_list().append(value)

    def _appends(self, _: Any) -> None:
        values = self._pop_marked()
        self._top_list().extend(values)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._top_pairs().append((key, value))

    def _setitems(self, _: Any) -> None:
        values = self._pop_marked()
        self._top_pairs().extend(_paired(values))

    def _top_list(self) -> list[Any]:
        top = self.stack[-1]
        if not isinstance(top, list):
            raise TypeError("values are added to no list")
        return top

    def _top_pairs(self) -> list[tuple[Any, Any]]:
        top = self.stack[-1]
        return (top.items if isinstance(top, Call) else top).pairs

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name is no text")
        found = Name(module, name)
        if self.allowed is not None and found not in self.allowed:
            raise ValueError(f"it names {str(found)[:100]}, which is not needed here")
        self.stack.append(found)

    def _reduce(self, _: Any) -> None:
        args = self.pop()
        self.stack.append(Call(self.pop(), args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        values = self._pop_marked()
        self._global(argument)
        self.stack.append(Call(self.pop(), tuple(values)))

    def _obj(self, _: Any) -> None:
        function, *args = self._pop_marked()
        self.stack.append(Call(function, tuple(args)))

    def _build(self, _: Any) -> None:
        state, top = self.pop(), self.stack[-1]
        if isinstance(top, Name):
            raise ValueError(f"it changes {top}")  # noqa: TRY004 - parse_pickle's callers expect one kind
        if isinstance(top, Call):
            top.state = state

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Persistent(self.pop()))


def _paired(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise TypeError("a key has no value")
    return list(zip(values[::2], values[1::2], strict=True))
