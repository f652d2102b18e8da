"""Weight files of other frameworks as trees of named tensors, whatever else they carry."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from backbone.errors import UserError
from backbone.interop import kinds
from backbone.interop.keys import some
from backbone.interop.pickles import Array, Inert
from backbone.interop.torchfiles import Stored, read_legacy, read_pickle, read_zip

DEEPEST = 8  # parts of a checkpoint within each other
LARGEST = 8 << 30  # bytes of the arrays of an .npz, which may be compressed; the largest net has 2.3e9 in fp64


def tree(name: str, data: bytes) -> Any:
    """What a file holds, by its content: mappings within each other, with tensors, arrays, numbers and texts.

    Nothing in it is run: an object of any other class stands there as an `Inert`.

    Raises:
        UserError: it is no file of weights, or a damaged one; says what it is.
    """
    kind = kinds.kind(name, data)
    try:
        match kind:
            case "safetensors":
                return load_safetensors(data)
            case "npz":
                return _npz(data)
            case "zip":
                return read_zip(name, data)
            case "legacy":
                return read_legacy(name, data)
        return read_pickle(name, data)
    except UserError:
        raise
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, LookupError, OSError) as error:
        raise UserError(f"{name}: damaged: {_line(error)}") from error
    except (TypeError, MemoryError, OverflowError) as error:
        raise UserError(f"{name}: damaged: {_line(error)}") from error


def read(name: str, data: bytes, entry: str = "") -> dict[str, Tensor]:
    """The tensors of a file called `name`; `entry` names the part of a checkpoint that has them, such as `model`.

    Raises:
        UserError: the file is damaged, or what is named holds more than tensors.
    """
    return tensors(name, part(name, tree(name, data), entry))


def part(name: str, tree: Any, entry: str) -> dict[str, Any]:
    """The part of a tree at `entry`, dotted; empty: all of it.

    Raises:
        UserError: there is none, or it has no named values.
    """
    here, rest = named(tree), entry
    while rest and here is not None:
        step = next((key for key in here if rest == key or rest.startswith(f"{key}.")), None)
        if step is None:
            raise UserError(f"{name}: --entry {entry}: there is no {rest.partition('.')[0]}; it has {_listed(here)}")
        tree, rest = here[step], rest[len(step) + 1 :]
        here = named(tree)
    if here is None:
        place = f" at --entry {entry}" if entry else ""
        raise UserError(f"{name}: holds {_what(tree)}{place}, not named tensors")
    return here


def tensors(name: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every value as a tensor on CPU.

    Raises:
        UserError: some are none, or do not lie in the file as they should; names them.
    """
    other = {key: value for key, value in values.items() if not is_tensor(value)}
    if other:
        raise UserError(f"{name}: holds more than tensors: {_listed(other)}")
    if not values:
        raise UserError(f"{name}: holds no tensors")
    return {key: _tensor(f"{name}: {key}", value) for key, value in values.items()}


def branches(tree: Any) -> dict[str, dict[str, Any]]:
    """Every part that has tensors of its own, by its entry: not those of an optimizer, which are named by numbers."""
    return dict(_branches(tree, "", set()))


def is_tensor(value: Any) -> bool:
    """Whether a value of a tree can be a weight."""
    return isinstance(value, Tensor | np.ndarray | Stored) or (isinstance(value, Array) and value.array is not None)


def named(value: Any) -> dict[str, Any] | None:
    """The named values of a mapping, of an object like one, or of a whole pickled module: what its state_dict has."""
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    if isinstance(value, Inert):
        parts = module_tensors(value)
        return parts or {str(key): inner for key, inner in value.items.items()} or None
    return None


def module_tensors(module: Inert) -> dict[str, Any]:
    """Parameters and buffers of a `torch.nn.Module` that was pickled as a whole; empty where it is none."""
    return dict(_module(module, "", 0))


def unmade(tree: Any) -> list[str]:
    """The classes and functions whose objects stand in a tree as `Inert`, sorted."""
    found: set[str] = set()
    seen: set[int] = set()
    todo = [tree]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Inert):
            found.add(value.what)
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return sorted(found)


def _branches(tree: Any, entry: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    here = named(tree)
    if here is None or id(tree) in seen or entry.count(".") > DEEPEST:
        return
    seen.add(id(tree))
    if any(is_tensor(value) for value in here.values()):
        yield entry, here
    for key, value in here.items():
        if not key.isdigit():
            yield from _branches(value, f"{entry}.{key}" if entry else key, seen)


def _module(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    state = module.state if isinstance(module, Inert) else None
    if not isinstance(state, Mapping) or "_modules" not in state or depth > 100:
        return
    for kind in ("_parameters", "_buffers"):
        for name, value in (named(state.get(kind)) or {}).items():
            if is_tensor(value):
                yield prefix + name, value
    for name, inner in (named(state["_modules"]) or {}).items():
        yield from _module(inner, f"{prefix}{name}.", depth + 1)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, Stored):
            return value.tensor()
        array = value.array if isinstance(value, Array) else value
        if isinstance(array, np.ndarray):
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    except (ValueError, RuntimeError, TypeError, LookupError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{name}: damaged: {_line(error)}") from error
    return value.detach()


def _npz(data: bytes) -> dict[str, np.ndarray]:
    sizes = [info.file_size for info in zipfile.ZipFile(io.BytesIO(data)).infolist()]
    if sum(sizes) > LARGEST:
        raise ValueError(f"its arrays would be {sum(sizes)} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _listed(values: Mapping[str, Any]) -> str:
    """Names, with what stands there where a pickle asked for more than data."""
    shown = [f"{key} ({value.what}, not run)" if isinstance(value, Inert) else key for key, value in values.items()]
    return some(shown)


def _what(tree: Any) -> str:
    return f"{tree.what} (not run)" if isinstance(tree, Inert) else f"a {type(tree).__name__}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
