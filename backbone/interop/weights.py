"""Weight files of other frameworks as trees of named tensors, whatever else they carry."""

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from backbone.errors import UserError
from backbone.interop import kinds
from backbone.interop.keys import some
from backbone.interop.pickles import Array, Inert, escaped, numeric
from backbone.interop.torchfiles import Stored, read_legacy, read_member, read_pickle, read_zip

DEEPEST = 8  # parts of a checkpoint within each other
LARGEST = 4 << 30  # bytes of all tensors; VGG-19 in fp64 has 1.2e9


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
    except Exception as error:  # a file can make its reader fail in every way there is
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
    size = sum(_nbytes(value) for value in values.values())
    if size > LARGEST:  # more than lies in the file, where one storage is named by many
        raise UserError(f"{name}: its tensors would be {size} bytes, and no net here has more than {LARGEST}")
    return {key: _tensor(f"{name}: {key}", value) for key, value in values.items()}


def branches(tree: Any) -> dict[str, dict[str, Any]]:
    """Every part that has tensors of its own, by its entry: not those of an optimizer, which are named by numbers."""
    return dict(_branches(tree, "", set()))


def is_tensor(value: Any) -> bool:
    """Whether a value of a tree can be a weight."""
    return isinstance(value, Tensor | Stored) or (isinstance(value, Array) and value.array is not None)


def named(value: Any) -> dict[str, Any] | None:
    """The named values of a mapping, of an object like one, or of a whole pickled module: what its state_dict has."""
    if isinstance(value, Mapping):
        return _by_names(value)
    if isinstance(value, Inert):
        return module_tensors(value) or _by_names(value.items) or None
    return None


def _by_names(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Every value by a name that can be shown and typed, and no two by the same."""
    found: dict[str, Any] = {}
    for i, (key, value) in enumerate(values.items()):
        plain = isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 63)
        name = escaped(str(key)) if plain else "(no text)"
        found[name if name not in found else f"{name} ({i})"] = value
    return found


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
    if id(tree) in seen or entry.count(".") > DEEPEST:
        return
    seen.add(id(tree))
    here = named(tree)
    if here is None:
        return
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
        if isinstance(value, Array):
            array = value.array
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    except Exception as error:  # as above
        raise UserError(f"{name}: damaged: {_line(error)}") from error
    return value.detach()


def _nbytes(value: Any) -> int:
    array = value.array if isinstance(value, Array) else value
    return array.nbytes


def _npz(data: bytes) -> dict[str, Array]:
    """Arrays by their names; those that are not of numbers are empty."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    size = sum(info.file_size for info in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"its arrays would be {size} bytes")
    return {name.removesuffix(".npy"): _npy(read_member(archive, name)) for name in archive.namelist()}


def _npy(data: bytes) -> Array:
    """One array: of the bytes that are there, where numpy first takes the memory that the header asks for."""
    file = io.BytesIO(data)
    form = np.lib.format
    read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[form.read_magic(file)]
    shape, fortran, dtype = read(file)
    try:
        kind = numeric(dtype)
    except ValueError:
        return Array()
    flat = np.frombuffer(data, kind, count=math.prod(shape), offset=file.tell())
    return Array(flat.reshape(shape, order="F" if fortran else "C"))


def _listed(values: Mapping[str, Any]) -> str:
    """Names, with what stands there where a pickle asked for more than data."""
    shown = [f"{key} ({value.what}, not run)" if isinstance(value, Inert) else key for key, value in values.items()]
    return some(shown)


def _what(tree: Any) -> str:
    return f"{tree.what} (not run)" if isinstance(tree, Inert) else f"a {type(tree).__name__}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
