"""Weight files of other frameworks, read without running anything that lies in them."""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from backbone.errors import UserError
from backbone.interop.keys import some

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".npz")


def read(name: str, data: bytes, entry: str = "") -> dict[str, Tensor]:
    """The tensors of a file called `name`, by their names in it; `entry` names the part of a checkpoint that has them.

    Raises:
        UserError: the file is damaged, asks for more than tensors, or holds more than one set of them.
    """
    suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
    try:
        if suffix == ".safetensors":
            tree: Any = load_safetensors(data)
        elif suffix == ".npz":
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                tree = dict(arrays)
        elif suffix == ".pkl":
            tree = unpickle(name, data)
        elif suffix:
            tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        else:
            raise UserError(f"{name}: not a weights file; these are: {', '.join(SUFFIXES)}")
    except pickle.UnpicklingError as error:
        # torch's own text proposes weights_only=False.
        asks = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asks[1]}; weights need tensors alone" if asks else "it holds more than tensors"
        raise UserError(f"{name}: refused, nothing of it was run: {what}") from error
    except UserError:
        raise
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise UserError(f"{name}: damaged or not what its name says: {_line(error)}") from error
    return _tensors(name, _part(name, tree, entry))


def unpickle(name: str, data: bytes) -> Any:
    """A pickle of dicts, lists, strings, numbers and numeric numpy arrays, such as a detectron2 `.pkl`.

    Raises:
        UserError: it asks for anything else, which is named and not looked up, or it is damaged.
    """
    try:
        return _OnlyArrays(io.BytesIO(data), name).load()
    except UserError:
        raise
    except Exception as error:  # a pickle can make its machine fail in every way there is
        raise UserError(f"{name}: damaged or not a pickle of arrays: {_line(error)}") from error


def pickled(tree: Mapping[str, Any]) -> bytes:
    """A pickle of dicts, strings and arrays that numpy of any version opens, 1.x too, which detectron2 often has."""
    buffer = io.BytesIO()
    _AnyNumpy(buffer, protocol=4).dump(tree)
    return buffer.getvalue()


class _AnyNumpy(pickle.Pickler):
    """Writes arrays as `numpy.ndarray(shape, dtype, bytearray)`; numpy 2's own way names modules that 1.x lacks."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            obj = np.asarray(obj, order="C")  # ascontiguousarray would give a number an axis
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


class _OnlyArrays(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, name: str) -> None:
        super().__init__(file, encoding="latin1")  # as Python 2 wrote the older ones
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call: stand-ins that make numeric arrays and nothing else."""
        if (module, name) in MAKERS:
            return _Maker(MAKERS[module, name])
        raise UserError(
            f"{self.name}: refused, nothing of it was run: it asks for {module}.{name}; weights need arrays alone"
        )

    def persistent_load(self, pid: Any) -> Any:
        """Refused: arrays have none."""
        raise UserError(f"{self.name}: refused: it refers to something outside of itself")


def _array(shape: Any, dtype: Any = "f8", buffer: Any = None, *rest: Any) -> np.ndarray:
    kind = _numeric(dtype)
    if rest or not isinstance(buffer, bytes | bytearray):
        raise ValueError("an array without its data")
    return np.frombuffer(bytes(buffer), kind).reshape(shape)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(bytes(buffer), _numeric(dtype)).reshape(shape, order="F" if order == "F" else "C")


class _Empty:
    """What `_reconstruct` makes; the state that follows fills it. Not an ndarray, whose state could be anything."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # a Python 2 string, read as latin1
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray):
            raise ValueError("an array of objects")
        self.array = np.frombuffer(bytes(data), _numeric(dtype)).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stand-in for numpy.dtype, whose own state may describe anything."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _scalar(dtype: Any, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(bytes(data), _numeric(dtype))[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _bytearray(content: Any = b"", encoding: str = "latin1") -> bytearray:
    """A bytearray of given bytes, not of a given length, which could be any."""
    if isinstance(content, int):
        raise ValueError("a buffer without its data")
    return bytearray(content.encode(encoding) if isinstance(content, str) else content)


def _numeric(dtype: Any) -> np.dtype:
    kind = np.dtype(dtype.order + dtype.code if isinstance(dtype, _Dtype) and dtype.order in "<>" else _code(dtype))
    if kind.kind not in "fiub":
        raise ValueError(f"an array of {kind}")
    return kind


def _code(dtype: Any) -> str:
    return dtype.code if isinstance(dtype, _Dtype) else str(dtype)


class _Maker:
    """Something that a pickle may call and not alter, as it could a function or a class by setting its attributes."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it alters what it may only call")


MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _array,
    ("numpy", "dtype"): _Dtype,
    **{(m, kind): _bytearray for m in ("builtins", "__builtin__") for kind in ("bytearray", "bytes")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Empty() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


def _part(name: str, tree: Any, entry: str) -> Mapping[str, Any]:
    for step in filter(None, entry.split(".")):
        if not isinstance(tree, Mapping) or step not in tree:
            has = some(map(str, tree)) if isinstance(tree, Mapping) else f"a {type(tree).__name__}"
            raise UserError(f"{name}: entry {entry}: there is no {step}; it has {has}")
        tree = tree[step]
    if not isinstance(tree, Mapping):
        raise UserError(f"{name}: holds a {type(tree).__name__}, not named tensors")
    return tree


def _tensors(name: str, tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every value as a tensor; anything else must be named by the user, not skipped."""
    found, other = {}, []
    for key, value in tree.items():
        value = value.array if isinstance(value, _Empty) else value
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            found[str(key)] = value.detach()
        else:
            other.append(str(key))
    sets = [key for key in other if isinstance(tree[key], Mapping)] if all(isinstance(k, str) for k in tree) else []
    if other:
        hint = f"; --entry names the part with the weights: {' or '.join(sets)}" if sets else ""
        raise UserError(f"{name}: holds more than tensors: {some(other)}{hint}")
    if not found:
        raise UserError(f"{name}: holds no tensors")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
