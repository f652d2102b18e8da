"""The files that an import is given: one, a folder's, or the shards of an index."""

import json
import posixpath
from typing import Any

from backbone.errors import UserError
from backbone.interop import kinds
from backbone.interop.common import Files
from backbone.interop.keys import some
from backbone.storage import filesystem, join

CONFIGS = (".json", ".yaml", ".yml", ".py")
INDEX = ".index.json"
POINTER = "last_checkpoint"  # in which detectron2 and mmengine name the newest of a folder
# What trainers leave beside weights, in the same formats.
STATES = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")


def read(url: str) -> tuple[Files, list[str]]:
    """A file; of a folder its weights and configs; of an index its shards. And what of a folder was not read.

    Raises:
        UserError: it cannot be read, holds no weights or more than one set, or is a checkpoint of many files, of which
            its makers' tool makes one.
    """
    fs, path = filesystem(url)
    try:
        if not fs.isdir(path):
            folder, name = posixpath.split(path)
            if name.endswith(INDEX):
                return _shards(fs, folder, name), []
            if kinds.SHARD.search(name) and fs.exists(folder):
                raise UserError(f"{url}: one of several shards; give all: --weights {posixpath.dirname(url) or '.'}")
            return {name: fs.cat_file(path)}, []
        names = sorted(place.rstrip("/").rpartition("/")[2] for place in fs.ls(path, detail=False))
        kinds.check_folder(url.rstrip("/"), names)
        files = [name for name in names if fs.isfile(join(path, name))]
        configs = {name: fs.cat_file(join(path, name)) for name in files if name.endswith(CONFIGS)}
        indices = [name for name in configs if name.endswith(INDEX)]
        if indices:
            chosen = min(indices, key=lambda name: ".safetensors" not in name)
            beside = {name: data for name, data in configs.items() if name not in indices}
            return beside | _shards(fs, path, chosen), []
        heads = {name: fs.cat_file(join(path, name), end=kinds.HEAD) for name in files if name not in configs}
        kept, left = _chosen(fs, path, url, heads)
        return configs | {kept: fs.cat_file(join(path, kept))}, [left] if left else []
    except OSError as error:
        raise UserError(f"weights {url}: cannot be read: {error}") from error


def weights_files(files: Files, where: str) -> list[str]:
    """The file that holds weights, or the shards of one; UserError where there is not one set of them."""
    indices = [name for name in files if name.endswith(INDEX)]
    if indices:
        return _named(indices[0], files[indices[0]])
    names = [name for name, data in files.items() if kinds.is_weights(name, data[: kinds.HEAD])]
    if len(names) == 1:
        return names
    if len(files) == 1:  # says what it is
        kinds.kind(*next(iter(files.items())))
    raise UserError(f"{where}: {len(names)} files with weights: {some(names)}")


def _chosen(fs: Any, path: str, url: str, heads: dict[str, bytes]) -> tuple[str, str]:
    """Of a folder the one file to read, and a note about those that are not."""
    found = [name for name, head in heads.items() if kinds.is_weights(name, head)]
    names = [name for name in found if not name.startswith(STATES)]
    safe = [name for name in names if name.endswith(".safetensors")]
    pointer = posixpath.basename(fs.cat_file(join(path, POINTER)).decode().strip()) if POINTER in heads else ""
    one = names if len(names) == 1 else safe if len(safe) == 1 else [pointer] if pointer in names else []
    if one:
        rest = [name for name in found if name != one[0]]
        return one[0], f"not read, {one[0]} was: {', '.join(rest)}" if rest else ""
    if names:
        places = " or ".join(f"--weights {join(url, name)}" for name in names)
        raise UserError(f"{url}: more than one file with weights; give one: {places}")
    reasons = []
    for name, head in heads.items():
        try:
            kinds.kind(name, head)
        except UserError as reason:
            reasons.append(str(reason))
    raise UserError(
        f"{url}: no file with weights, looking at what is in them and not at their names. " + "; ".join(reasons[:4])
    )


def _shards(fs: Any, folder: str, index: str) -> Files:
    data = fs.cat_file(join(folder, index))
    names = _named(index, data)
    missing = [name for name in names if not fs.exists(join(folder, name))]
    if missing:
        raise UserError(f"{index}: {len(missing)} of its {len(names)} shards are missing: {some(missing)}")
    return {index: data} | {name: fs.cat_file(join(folder, name)) for name in names}


def _named(index: str, data: bytes) -> list[str]:
    """The shards that an index names: files beside it and nowhere else."""
    try:
        names = sorted(set(json.loads(data)["weight_map"].values()))
        if not names or any("/" in name or name.startswith("..") for name in names):
            raise ValueError("a shard is a file beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards: {error!r}") from error
    return names
