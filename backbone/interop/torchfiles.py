"""What `torch.save` wrote, in its zip form and the form before 1.6, read without torch's unpickler.

`torch.load(weights_only=True)` refuses a file for one object that is no tensor, and `weights_only=False` runs it. Here
every tensor is a `Stored` until it is asked for, on CPU wherever it was saved.
"""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.interop.pickles import Filled, Maker, unpickle

MOST_AXES = 64  # torch's own bound
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # MAGIC, pickled

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Dtype:
    """The class of a storage, which a pickle names."""

    dtype: torch.dtype


class Content:
    """The bytes of a storage, got by `read`, once however often a file names them."""

    def __init__(self, read: Callable[[], bytes] = bytes) -> None:
        self.read = read
        self._flat: Tensor | None = None

    def flat(self) -> Tensor:
        """All of them, uint8 [N]."""
        if self._flat is None:
            data = bytearray(self.read())  # frombuffer wants memory that may be written to, and has no word for nothing
            self._flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.tensor([], dtype=torch.uint8)
        return self._flat


@dataclass(frozen=True, eq=False)
class Storage:
    """`count` numbers in a row, `offset` numbers behind the first byte."""

    content: Content
    dtype: torch.dtype
    count: int
    offset: int = 0

    def tensor(self) -> Tensor:
        """All of it, [count]; ValueError where the bytes are fewer."""
        flat, size = self.content.flat(), self.dtype.itemsize
        start, end = self.offset * size, (self.offset + self.count) * size
        if len(flat) < end:
            raise ValueError(f"{len(flat)} bytes where {end} belong")
        return flat[start:end].view(self.dtype)


class Stored(Filled):
    """A tensor of a file, not read yet. What attributes it had as an object of Python are left out."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(size), tuple(stride)
        numbers = (offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > MOST_AXES:
            raise ValueError("no shape of a tensor")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError("no shape of a tensor")

    @property
    def nbytes(self) -> int:
        """Memory that its values take."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """Its values; ValueError where it reaches beyond its storage or counts numbers twice."""
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if count and (last >= self.storage.count or count > self.storage.count):
            raise ValueError(f"a tensor of shape {list(self.shape)} that its {self.storage.count} numbers do not hold")
        if not count:
            return torch.zeros(self.shape, dtype=self.storage.dtype)
        return self.storage.tensor().as_strided(self.shape, self.stride, self.offset).contiguous()


def _first(value: Any, *_: Any) -> Any:
    """A parameter is its data."""
    return value


def _again(make: Any, _: Any, args: Any, *__: Any) -> Any:
    """A subclass of a tensor is the tensor."""
    if not isinstance(make, Maker):
        raise TypeError("a tensor of an unknown kind")
    return make(*args)


def _globals(name: str, depth: int) -> dict[tuple[str, str], Any]:
    classes: dict[tuple[str, str], Any] = {("torch", kind): _Dtype(dtype) for kind, dtype in DTYPES.items()}
    classes |= {(module, "UntypedStorage"): _Dtype(torch.uint8) for module in ("torch", "torch.storage")}
    return classes | {
        ("torch._utils", "_rebuild_tensor"): Stored,
        ("torch._utils", "_rebuild_tensor_v2"): Stored,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): _again,
        ("torch.storage", "_load_from_bytes"): lambda data: _within(name, data, depth),
    }


def _within(name: str, data: Any, depth: int) -> Any:
    """A storage that was pickled by itself is a torch file inside of a pickle."""
    if depth > 1 or not isinstance(data, bytes):
        raise ValueError("torch files inside of each other")
    return read_zip(name, data, depth + 1) if data.startswith(b"PK") else read_legacy(name, data, depth + 1)


def read_pickle(name: str, data: bytes) -> Any:
    """A plain pickle, such as detectron2's `.pkl`, which may hold arrays and, rarely, tensors."""
    return unpickle(name, io.BytesIO(data), _globals(name, 0))


def read_zip(name: str, data: bytes, depth: int = 0) -> Any:
    """The tree of a zip that `torch.save` wrote.

    Raises:
        UserError: it is damaged.
        KeyError, ValueError, zipfile.BadZipFile: the same.
    """
    archive = zipfile.ZipFile(io.BytesIO(data))
    (root,) = [n.removesuffix("data.pkl") for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]

    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > len(data):  # torch compresses nothing
        raise ValueError(f"unpacked it would be {unpacked} bytes")

    def member(path: str) -> bytes:
        return read_member(archive, root + path)

    if root + "byteorder" in archive.namelist() and member("byteorder").strip() == b"big":
        raise UserError(f"{name}: written on a big-endian machine; save it again on another, or as .safetensors")
    contents: dict[str, Content] = {}

    def persistent(pid: Any) -> Any:
        _, kind, key, _, count = pid
        content = contents.setdefault(str(key), Content(lambda: member(f"data/{key}")))
        return _storage(content, kind, count)

    return unpickle(name, io.BytesIO(member("data.pkl")), _globals(name, depth), persistent)


def read_legacy(name: str, data: bytes, depth: int = 0) -> Any:
    """The tree of a file that torch before 1.6 wrote, or `_use_new_zipfile_serialization=False`.

    Raises:
        UserError: it is damaged.
        KeyError, ValueError, TypeError: the same.
    """
    file = io.BytesIO(data)
    known, storages = _globals(name, depth), dict[str, Storage]()
    magic, _, system = (unpickle(name, file, known) for _ in range(3))
    if magic != MAGIC:
        raise ValueError("not what torch.save writes")
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise UserError(f"{name}: written on a big-endian machine; save it again on another, or as .safetensors")

    def persistent(pid: Any) -> Any:
        if pid[0] == "module":  # a class, with its source code
            return pid[1]
        _, kind, key, _, count, view = pid
        root = storages.setdefault(str(key), _storage(Content(), kind, count))
        if view is None:
            return _storage(root.content, kind, count)
        _, offset, size = view
        return _storage(root.content, kind, size, offset)

    tree = unpickle(name, file, known, persistent)
    places = {}
    for key in unpickle(name, file, known):
        root = storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        size = count * root.dtype.itemsize
        if size > len(data) - file.tell():
            raise ValueError("it ends within its tensors")
        places[str(key)] = (file.tell(), size)
        file.seek(size, io.SEEK_CUR)
    for key, root in storages.items():
        start, size = places[key]
        root.content.read = lambda start=start, size=size: data[start : start + size]
    return tree


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip: as many bytes as its directory says, whatever more a compressed stream would give."""
    info = archive.getinfo(name)
    with archive.open(info) as file:
        return file.read(info.file_size)


def _storage(content: Content, kind: Any, count: Any, offset: Any = 0) -> Storage:
    if not isinstance(kind, _Dtype) or not all(type(n) is int and 0 <= n < 1 << 48 for n in (count, offset)):
        raise ValueError("a storage of an unknown kind")
    return Storage(content, kind.dtype, count, offset)
