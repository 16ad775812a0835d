"""What a pickle describes, read without executing anything that it names.

A pickle is a program for a small machine that may import names and call them. Here every name becomes a
`Named`
and every call a `Made` record of its name and arguments, so that a file can be searched for tensors and its
names
can be shown to the user. `pickletools` of the standard library splits the bytes into operations.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from npd_core.errors import CheckpointError

MAX_OPERATIONS = 3_000_000
"""A file that keeps 50,000 images with their paths has about 1.5 million."""
MAX_DEPTH = 100
"""Nesting of tuples; a deeper one could exhaust the stack when it is compared or hashed."""
LONG = 2048
"""Texts and bytes of more bytes than this stay in the file until somebody asks for them."""

DANGEROUS = frozenset((
    "os", "posix", "nt", "ntpath", "posixpath", "subprocess", "sys", "shutil", "socket", "runpy",
    "importlib", "pty", "ctypes", "code", "codeop", "webbrowser", "pickle", "cPickle", "_pickle",
    "dill", "cloudpickle", "marshal", "commands", "multiprocessing", "asyncio", "threading", "_thread",
    "signal", "io", "_io", "tempfile", "pathlib2", "urllib", "requests", "http", "ftplib", "smtplib",
    "pip", "ensurepip", "pdb", "bdb", "timeit", "trace", "profile", "cProfile", "operator",
    "_operator", "functools", "types", "inspect", "gc", "platform", "ssl", "nturl2path", "distutils",
    "setuptools", "doctest", "idlelib", "venv", "zipimport", "zipfile", "tarfile", "sqlite3", "mmap",
    "fcntl", "resource",
))  # fmt: skip
"""Modules whose names have no place in a file of weights: they reach the system or run code."""
HARMLESS_BUILTINS = frozenset(
    [
        "set",
        "frozenset",
        "list",
        "dict",
        "tuple",
        "str",
        "int",
        "float",
        "bool",
        "complex",
        "bytes",
        "bytearray",
        "slice",
        "range",
        "object",
        "NoneType",
    ]
)
HARMLESS = frozenset({"functools.partial", "types.SimpleNamespace", "operator.itemgetter"})


class Named(NamedTuple):
    """A name that the pickle refers to; it is never looked up."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def dangerous(self) -> bool:
        """Whether a file that calls this name would run code or reach the system where it is unpickled."""
        if self.module in ("builtins", "__builtin__"):
            return self.name not in HARMLESS_BUILTINS
        hidden = {"system", "popen", "exec", "eval", "__import__", "import_module", "call", "run", "Popen"}
        foreign = self.module.partition(".")[0] in DANGEROUS and self.path not in HARMLESS
        return foreign or not hidden.isdisjoint(self.name.split("."))


class Made:
    """The record of an object that the pickle would make: who makes it, of what, and the state it is
    given."""

    __slots__ = ("args", "items", "maker", "state")

    def __init__(self, maker: object, args: object) -> None:
        self.maker = maker
        self.args = args
        self.state: object = None
        self.items: list[Any] = []
        """Appended values."""

    @property
    def name(self) -> str:
        """Module and name of the maker; "" for something that cannot be called."""
        return self.maker.path if isinstance(self.maker, Named) else ""


class Mapped(dict[Any, Any]):
    """A dictionary, whatever the class it was in the file: ordered, with a default, or somebody's own."""

    maker: object = None
    state: object = None


class Blob(NamedTuple):
    """A long text or long bytes, left in the file."""

    start: int
    """Offset of its operation in the file."""
    size: int


class Kept(NamedTuple):
    """A persistent id: how torch refers to the numbers of a tensor, which lie outside the pickle."""

    id: object


class Mark:
    """Where a list of arguments begins on the stack."""


MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")


def read_pickle(file: IO[bytes]) -> tuple[object, set[Named]]:
    """Interpret one pickle at the position of `file`, up to its end, as records.

    Returns:
        The object, made of dictionaries, lists, tuples, plain values and the classes above, and all its
        names.
    Raises:
        CheckpointError: too many operations, or too deeply nested.
        ValueError, LookupError and others: damaged.
    """
    machine = Machine()
    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)
    for count, (operation, value, position) in enumerate(operations):
        if count > MAX_OPERATIONS:
            raise CheckpointError(
                f"The description of the checkpoint has more than {MAX_OPERATIONS:,} operations: save the "
                "state "
                "dict alone."
            )
        if isinstance(value, str | bytes | bytearray) and len(value) > LONG:
            value = Blob(position or 0, len(value))
        machine.run(operation.name, value)
    return machine.pop(), machine.names


def blob_bytes(file: IO[bytes], blob: Blob) -> bytes:
    """Read the bytes that a Blob left in the file; a text of protocol 2 holds one byte a character."""
    file.seek(blob.start)
    _, value, _ = next(iter(pickletools.genops(file)))
    return value.encode("latin1") if isinstance(value, str) else bytes(value or b"")


class Machine:
    """The stack and the memo of the pickle machine, with records instead of objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[Named] = set()
        self.depth: dict[int, int] = {}
        """Nesting of tuples by identity; the memo or the stack keeps them alive."""
        self.alive: list[object] = []

    def run(self, name: str, value: Any) -> None:
        """Carry out one operation."""
        if name in PUSHED:
            self.stack.append(value)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name not in OPERATIONS:
            raise CheckpointError(
                f"The checkpoint uses {name}, which torch.save never writes: save it again."
            )
        else:
            OPERATIONS[name](self, value)

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark from the stack, and the mark."""
        for k in range(len(self.stack) - 1, -1, -1):
            if self.stack[k] is Mark:
                found = self.stack[k + 1 :]
                del self.stack[k:]
                return found
        raise ValueError("a list without its beginning")

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        found = Named(module, name)
        self.names.add(found)
        self.stack.append(found)

    def tuple(self, values: list[Any]) -> None:
        made = tuple(values)
        depth = 1 + max((self.depth.get(id(v), 0) for v in made if isinstance(v, tuple)), default=0)
        if depth > MAX_DEPTH:
            raise CheckpointError("The description of the checkpoint is nested too deeply: save it again.")
        if depth > 1 or made:
            self.depth[id(made)] = depth
            self.alive.append(made)
        self.stack.append(made)

    def make(self, maker: object, args: object) -> None:
        name = maker.path if isinstance(maker, Named) else ""
        if name in MAPPINGS:
            made = Mapped()
            made.maker = maker
            first = args[0] if isinstance(args, tuple) and args else ()
            if isinstance(first, list):
                pairs = [tuple(p) for p in first if isinstance(p, list | tuple) and len(p) == 2]
                made.update((key, value) for key, value in pairs)
            self.stack.append(made)
        else:
            self.stack.append(Made(maker, args))

    def set_items(self, values: list[Any]) -> None:
        target, pairs = self.stack[-1], zip(values[::2], values[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                if isinstance(key, str | int | float | bool | None | bytes):
                    target[key] = value
        elif isinstance(target, Made):
            if not isinstance(target.state, dict):
                target.state = {}
            target.state.update((k, v) for k, v in pairs if isinstance(k, str | int))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.items.extend(values)

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Made | Mapped):
            target.state = state


def _put(machine: Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _memoize(machine: Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: Machine, index: Any) -> None:
    machine.stack.append(machine.memo[int(index)])


def _global(machine: Machine, value: Any) -> None:
    module, _, name = str(value).partition(" ")
    machine.name(module, name)


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _reduce(machine: Machine, _: Any) -> None:
    args, maker = machine.pop(), machine.pop()
    machine.make(maker, args)


def _new_with_keywords(machine: Machine, _: Any) -> None:
    machine.pop()
    _reduce(machine, None)


def _object(machine: Machine, _: Any) -> None:
    maker, *args = machine.since_mark()
    machine.make(maker, tuple(args))


def _instance(machine: Machine, value: Any) -> None:
    args = machine.since_mark()
    _global(machine, value)
    machine.make(machine.pop(), tuple(args))


def _persistent(machine: Machine, _: Any) -> None:
    machine.stack.append(Kept(machine.pop()))


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: Machine, _: Any) -> None:
    value = machine.pop()
    machine.append([value])


def _dictionary(machine: Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.stack.append({})
    machine.set_items(values)


PUSHED = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list, "MARK": lambda: Mark,
}  # fmt: skip
"""A set becomes a list: its members are records, which need not be hashable."""
OPERATIONS: dict[str, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), lambda machine, value: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.stack.append(machine.since_mark())),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.append(machine.since_mark())),
    "MEMOIZE": _memoize, "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "NEWOBJ_EX": _new_with_keywords,
    "OBJ": _object, "INST": _instance, "BINPERSID": _persistent, "SETITEM": _set_item, "APPEND": _append,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BUILD": lambda machine, _: machine.build(), "DICT": _dictionary,
    "TUPLE": lambda machine, _: machine.tuple(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.tuple([machine.pop()]),
    "TUPLE2": lambda machine, _: machine.tuple([machine.pop(), machine.pop()][::-1]),
    "TUPLE3": lambda machine, _: machine.tuple([machine.pop(), machine.pop(), machine.pop()][::-1]),
    "POP": lambda machine, _: machine.pop(), "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
}  # fmt: skip
