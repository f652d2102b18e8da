"""What `torch.save` wrote, in its zip form and the form before 1.6, read without torch's unpickler.

`torch.load(weights_only=True)` refuses a file for one object that is no tensor, and `weights_only=False` runs it. Here
every tensor is a `Stored` until it is asked for, on CPU wherever it was saved.
"""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.interop.pickles import Maker, unpickle

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
    """The class of a storage, which a pickle names and cannot alter."""

    dtype: torch.dtype

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it alters the class of a storage")


@dataclass(eq=False)
class Storage:
    """Numbers in a row; `read` gets their bytes."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]
    offset: int = 0
    flat: Tensor | None = field(default=None, repr=False)

    def tensor(self) -> Tensor:
        """All of it, [count]; ValueError where the bytes are fewer or more."""
        if self.flat is None:
            data = self.read()
            size = torch.tensor([], dtype=self.dtype).element_size()
            if len(data) < (self.offset + self.count) * size:
                raise ValueError(f"{len(data)} bytes where {self.count} numbers of {size} bytes belong")
            # frombuffer wants memory that may be written to, and has no word for nothing.
            whole = torch.frombuffer(bytearray(data), dtype=self.dtype) if data else torch.tensor([], dtype=self.dtype)
            self.flat = whole[self.offset : self.offset + self.count]
        return self.flat


class Stored:
    """A tensor of a file, not read yet."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        self.storage, self.offset, self.shape, self.stride = storage, offset, tuple(size), tuple(stride)
        numbers = (offset, *self.shape, *self.stride)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.stride):
            raise ValueError("no shape of a tensor")

    def __setstate__(self, state: Any) -> None:
        """Attributes of a Python object; a weight has none."""

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
    makers: dict[tuple[str, str], Callable[..., Any]] = {
        ("torch._utils", "_rebuild_tensor"): Stored,
        ("torch._utils", "_rebuild_tensor_v2"): Stored,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): _again,
        ("torch.storage", "_load_from_bytes"): lambda data: _within(name, data, depth),
    }
    classes: dict[tuple[str, str], Any] = {("torch", kind): _Dtype(dtype) for kind, dtype in DTYPES.items()}
    classes |= {(module, "UntypedStorage"): _Dtype(torch.uint8) for module in ("torch", "torch.storage")}
    return classes | {key: Maker(make, ".".join(key)) for key, make in makers.items()}


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

    def member(path: str) -> bytes:
        info = archive.getinfo(root + path)
        if info.file_size > len(data):  # torch compresses nothing
            raise ValueError(f"{path} would be {info.file_size} bytes")
        return archive.read(info)

    if root + "byteorder" in archive.namelist() and member("byteorder").strip() == b"big":
        raise UserError(f"{name}: written on a big-endian machine; save it again on another, or as .safetensors")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        _, kind, key, _, count = pid
        key = str(key)
        if key not in storages:
            storages[key] = _storage(kind, count, lambda: member(f"data/{key}"))
        return _as(storages[key], kind, count)

    return unpickle(name, io.BytesIO(member("data.pkl")), _globals(name, depth), persistent)


def read_legacy(name: str, data: bytes, depth: int = 0) -> Any:
    """The tree of a file that torch before 1.6 wrote, or `_use_new_zipfile_serialization=False`.

    Raises:
        UserError: it is damaged.
        KeyError, ValueError, TypeError: the same.
    """
    file = io.BytesIO(data)
    known, storages = _globals(name, depth), {}
    magic, _, system = (unpickle(name, file, known) for _ in range(3))
    if magic != MAGIC:
        raise ValueError("not what torch.save writes")
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise UserError(f"{name}: written on a big-endian machine; save it again on another, or as .safetensors")

    def persistent(pid: Any) -> Any:
        if pid[0] == "module":  # a class, with its source code
            return pid[1]
        _, kind, key, _, count, view = pid
        root = storages.setdefault(str(key), _storage(kind, count, bytes))
        if view is None:
            return _as(root, kind, count)
        _, offset, size = view
        return _view(root, offset, size)

    tree = unpickle(name, file, known, persistent)
    places = {}
    for key in unpickle(name, file, known):
        root = storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        size = count * torch.tensor([], dtype=root.dtype).element_size()
        if size > len(data) - file.tell():
            raise ValueError("it ends within its tensors")
        places[str(key)] = (file.tell(), size)
        file.seek(size, io.SEEK_CUR)
    for key, root in storages.items():
        start, size = places[key]
        root.read = lambda start=start, size=size: data[start : start + size]
    return tree


def _storage(kind: Any, count: Any, read: Callable[[], bytes]) -> Storage:
    if not isinstance(kind, _Dtype) or type(count) is not int or count < 0:
        raise ValueError("a storage of an unknown kind")
    return Storage(kind.dtype, count, read)


def _as(root: Storage, kind: Any, count: Any) -> Storage:
    """A storage may be named again as of another kind."""
    if (root.dtype, root.count) == (getattr(kind, "dtype", None), count):
        return root
    return _storage(kind, count, lambda: root.read())


def _view(root: Storage, offset: Any, count: Any) -> Storage:
    if type(offset) is not int or type(count) is not int or min(offset, count) < 0:
        raise ValueError("no part of a storage")
    return Storage(root.dtype, count, lambda: root.read(), offset)
