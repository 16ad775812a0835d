"""Tensors of a file, described before a single number is read: .safetensors, and both formats of
`torch.save`.

`torch.load` makes tensors of the sizes that a file states, and its `weights_only` mode refuses files that
keep
anything beside weights. Here the description of a file is read first, as records (`pickles`), and then only
the
tensors that are wanted, each within the bounds of the bytes that the file holds.
"""

from __future__ import annotations

import json
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from torch import Tensor

from npd_core.errors import CheckpointError, first_line
from npd_core.uploads.pickles import Kept, Made, Named, read_pickle

MAX_BYTES = 700_000_000
"""Largest checkpoint; VGG19-BN of torchvision for 1000 classes has 575 million."""
MAX_PICKLE = 300_000_000
"""Largest description of the content of a PyTorch file; that of attack_result.pt may hold all images."""
MAX_ENTRIES = 50_000
MAX_HEADER = 20_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ASK = "save `net.state_dict()` again"

DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Number types that are read, by their names in both kinds of file."""
BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


class Stored(NamedTuple):
    """A tensor in a file: what it is and where it lies."""

    dtype: torch.dtype | None
    """None: a type that is not read, see `kind`."""
    kind: str
    """Its type in the file's words."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    key: str
    """Of the storage."""
    offset: int
    """Of the first number in the storage, in numbers."""

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def extent(self) -> int:
        """Numbers of the storage from the first to the last that the tensor uses."""
        if not self.numbers:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Place(NamedTuple):
    """Where the bytes of a storage lie in the file."""

    start: int
    size: int


@dataclass
class TensorFile:
    """An opened description: what the file holds, and how to read its tensors."""

    path: Path
    content: object
    """Records of `pickles`, with a Stored in place of each tensor in `tensor`."""
    places: Mapping[str, Place]
    names: set[Named] = field(default_factory=set)
    """Everything that the file refers to by name."""
    mapped: mmap.mmap | None = None

    def read(self, stored: Stored) -> Tensor:
        """Return a copy of one tensor, on the CPU in its own type. Raises CheckpointError when it lies
        outside
        the file."""
        place = self.places.get(stored.key)
        if stored.dtype is None or place is None:
            raise CheckpointError(f"The checkpoint is damaged (no numbers for {stored.key!r}): {ASK}.")
        size = stored.dtype.itemsize
        first, last = stored.offset * size, (stored.offset + stored.extent) * size
        if min(stored.offset, *stored.shape, *stored.stride, 0) < 0 or last > place.size:
            raise CheckpointError(f"The checkpoint is damaged (a tensor leaves its storage): {ASK}.")
        if not stored.numbers:
            return torch.empty(stored.shape, dtype=stored.dtype)
        with self.path.open("rb") as file:
            file.seek(place.start + first)
            data = bytearray(file.read(last - first))
        if len(data) != last - first:
            raise CheckpointError(f"The checkpoint ends too early (it was cut off): {ASK}.")
        flat = torch.frombuffer(data, dtype=stored.dtype)
        return flat.as_strided(stored.shape, stored.stride).contiguous()


def open_tensors(path: Path) -> TensorFile:
    """Read the description of a file. Raises CheckpointError: too large, damaged, of another kind."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"The checkpoint has {size / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB: upload the "
            "state dict alone, without optimizer and training data."
        )
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        try:
            if start.startswith(b"PK"):
                return _zipped(path, file)
            if start[:1] == b"\x80":
                return _legacy(path, file, size)
            return _safetensors(path, file, size)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise CheckpointError(f"The checkpoint is damaged ({first_line(error)}): {ASK}.") from error


def _safetensors(path: Path, file: IO[bytes], size: int) -> TensorFile:
    other = (
        "The checkpoint was written neither by safetensors nor by torch.save nor is it ONNX: upload a "
        ".safetensors, "
        ".pt, .pth or .onnx file."
    )
    length = struct.unpack("<Q", file.read(8))[0] if size > 8 else 0
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise CheckpointError(other)
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(other) from error
    content: dict[str, Stored] = {}
    places = {}
    for name, facts in header.items():
        shape = tuple(int(n) for n in facts["shape"])
        begin, end = (int(n) for n in facts["data_offsets"])
        dtype = DTYPES.get(facts["dtype"])
        if min(begin, end - begin, *shape, 0) < 0 or end > size - 8 - length:
            raise CheckpointError(f"The checkpoint ends too early (it was cut off): {ASK}.")
        if dtype is not None and prod(shape) * dtype.itemsize != end - begin:
            raise CheckpointError(
                f"The checkpoint is damaged ({name[:60]!r} has another size than stated): {ASK}."
            )
        content[name] = Stored(dtype, str(facts["dtype"])[:20], shape, _dense(shape), name, 0)
        places[name] = Place(8 + length + begin, end - begin)
    return TensorFile(path, content, places)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[k + 1 :]) for k in range(len(shape)))


def _zipped(path: Path, file: IO[bytes]) -> TensorFile:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    _check_entries(entries)
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "The checkpoint is a TorchScript program, which holds code: export the network as ONNX, or save "
            "`net.state_dict()`."
        )
    described = [entry for entry in entries if entry.filename.split("/", 1)[-1] == "data.pkl"]
    if len(described) != 1:
        raise CheckpointError(
            "The checkpoint is a zip archive that torch.save did not write: upload a .safetensors, .pt, .pth "
            "or "
            ".onnx file."
        )
    root = described[0].filename.removesuffix("data.pkl")
    places = {entry.filename: _place(file, entry) for entry in entries}
    if (order := places.get(root + "byteorder")) is not None:
        file.seek(order.start)
        if file.read(3) == b"big":
            raise CheckpointError(
                f"The checkpoint was written on a big-endian machine: {ASK} as safetensors."
            )
    place = places[described[0].filename]
    content, found = _described(file, place)
    data = {
        name.removeprefix(root + "data/"): p for name, p in places.items() if name.startswith(root + "data/")
    }
    return TensorFile(path, content, data, found)


def _described(file: IO[bytes], place: Place) -> tuple[object, set[Named]]:
    """Read the pickle at a place of the file; long texts in it keep their offsets in the file."""
    file.seek(place.start)
    return read_pickle(cast(IO[bytes], Window(file, place.start + place.size)))


class Window:
    """The part of a file up to `end`, as `pickletools` reads it."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self.file = file
        self.end = end

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.end - self.file.tell())
        return self.file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        return self.file.readline(max(0, min(self.end - self.file.tell(), 10_000)))

    def tell(self) -> int:
        return self.file.tell()


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what `torch.save` never writes: compressed entries, which could unpack to any size."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise CheckpointError(
            f"The checkpoint would unpack to {total / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB: "
            "upload the state dict alone, without optimizer and training data."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise CheckpointError(
            "The checkpoint is a compressed archive, which torch.save never writes: upload the file that is "
            "in it."
        )
    if len(entries) > MAX_ENTRIES or len({entry.filename for entry in entries}) < len(entries):
        raise CheckpointError(
            f"The checkpoint has two entries of one name, or more than {MAX_ENTRIES}, which torch.save never "
            f"writes: {ASK}."
        )
    if any(entry.file_size > MAX_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
        raise CheckpointError(
            f"The description of the checkpoint has more than {MAX_PICKLE / 1e6:.0f} MB: upload the state "
            "dict alone."
        )


def _place(file: IO[bytes], entry: zipfile.ZipInfo) -> Place:
    """Where the bytes of a stored entry begin: behind its own header, whose length may differ."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"The checkpoint is damaged (an entry without a header): {ASK}.")
    name, extra = struct.unpack("<HH", header[26:30])
    return Place(entry.header_offset + 30 + name + extra, entry.file_size)


def _legacy(path: Path, file: IO[bytes], size: int) -> TensorFile:
    """A file of PyTorch before 1.6: five pickles, the last of them the order of the storages, then their
    bytes."""
    whole = Window(file, min(size, MAX_PICKLE))
    names: set[Named] = set()
    parts = []
    for number in range(5):
        part, found = read_pickle(cast("IO[bytes]", whole))
        names |= found
        parts.append(part)
        if number == 0 and part != LEGACY_MAGIC:
            return TensorFile(path, NOT_TORCH, {}, names)
    keys = parts[4]
    if not isinstance(keys, list) or len(keys) > MAX_ENTRIES:
        raise ValueError("no list of storages")
    sizes = {key: dtype.itemsize for key, dtype in _storages(parts[3])}
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        place = Place(file.tell(), count * sizes.get(key, 1))
        if count < 0 or place.start + place.size > size:
            raise CheckpointError(f"The checkpoint ends too early (it was cut off): {ASK}.")
        places[str(key)] = place
        file.seek(place.start + place.size)
    return TensorFile(path, parts[3], places, names)


NOT_TORCH = "a pickle that torch.save did not write"


def walk(content: object, limit: int = 2_000_000) -> Iterator[object]:
    """Yield every record and value of a description once, containers before what they hold."""
    seen: set[int] = set()
    waiting: list[object] = [content]
    while waiting and len(seen) < limit:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | None):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, Made):
            waiting += [value.args, value.state, value.items]


def _storages(content: object) -> Iterator[tuple[object, torch.dtype]]:
    for value in walk(content):
        if isinstance(value, Kept) and (found := _storage(value)) is not None and found[1] is not None:
            yield found[0], found[1]


def _storage(kept: object) -> tuple[str, torch.dtype | None, str, int] | None:
    """Return key, type, name of the type, and offset of a view, of a reference to a storage."""
    if not isinstance(kept, Kept) or not isinstance(kept.id, tuple) or len(kept.id) < 5:
        return None
    _, kind, key, _, _, *view = kept.id
    name = kind.name if isinstance(kind, Named) else str(kind)
    shift = view[0][1] if view and isinstance(view[0], tuple) and len(view[0]) == 3 else 0
    return str(key), DTYPES.get(name), name, shift if isinstance(shift, int) else 0


def tensor(value: object) -> Stored | None:
    """Return the tensor that a record describes; None: it describes none.

    A sparse, quantized or otherwise special tensor has the dtype None.
    """
    if isinstance(value, Stored):
        return value
    if not isinstance(value, Made) or not isinstance(value.args, tuple):
        return None
    name, args = value.name, value.args
    if name.endswith(("._rebuild_parameter", "._rebuild_parameter_with_state", ".Parameter")) and args:
        return tensor(args[0])
    if name.endswith("._rebuild_from_type_v2") and len(args) > 2:
        return tensor(_made(args[0], args[2]))
    if name not in (
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v3",
    ):
        special = name.startswith("torch._utils._rebuild_") or name == "torch._tensor._rebuild_from_type"
        return Stored(None, name.rpartition(".")[2], (), (), "", 0) if special else None
    if len(args) < 4 or (found := _storage(args[0])) is None:
        return Stored(None, "an incomplete tensor", (), (), "", 0)
    key, dtype, kind, shift = found
    if name.endswith("_v3") and len(args) > 6:
        kind = args[6].name if isinstance(args[6], Named) else str(args[6])
        dtype = BY_NAME.get(kind)
    numbers = (
        (args[1], *args[2], *args[3])
        if isinstance(args[2], tuple) and isinstance(args[3], tuple)
        else (None,)
    )
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers) or len(args[2]) != len(args[3]):
        return Stored(None, "a tensor without a shape", (), (), "", 0)
    return Stored(dtype, kind, tuple(args[2]), tuple(args[3]), key, args[1] + shift)


def _made(maker: object, args: Any) -> Made:
    return Made(maker, args if isinstance(args, tuple) else ())


__all__ = ["MAX_BYTES", "NOT_TORCH", "Stored", "TensorFile", "open_tensors", "pickletools", "tensor", "walk"]
