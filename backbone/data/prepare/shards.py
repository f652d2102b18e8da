"""One shard of a prepared data set: its bytes are a function of the source, the options and its number."""

import functools
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np

from backbone.data.ahead import read_ahead
from backbone.data.index import IndexedSource
from backbone.data.prepare.options import Prepare
from backbone.data.prepare.pack import Packed, encode, pack, reduce
from backbone.data.sources import Source
from backbone.data.stream import order
from backbone.errors import BadImage, StorageError, UserError
from backbone.storage import filesystem, writing

EXAMPLES = 5
STEM = 60  # characters of an image's own name in its key: with the rest below tar's 100
BLOCK = 1 << 20
AHEAD = 64  # images that are read before they are asked for, where they lie at a URL
STAYS = "finished shards"  # where an output is full or fails


@dataclass
class ShardRecord:
    """What is known of a shard: `<shard>.json` beside it. Written last, so where it is the shard is whole."""

    shard: str
    sha256: str
    bytes: int
    images: int
    samples: list[int]  # numbers of its images in the source, as they lie in it
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)  # what -> {"count", "examples"}
    skipped: list[str] = field(default_factory=list)  # image: why


class Writer:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._sha.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def count_shards(num_images: int, options: Prepare) -> int:
    return -(-num_images // options.images_per_shard)


@functools.lru_cache(maxsize=1)
def _order(seed: int, num_images: int) -> np.ndarray:
    """Made once a process: of 14 M images it takes seconds, and they have thousands of shards."""
    return order(seed, 0, num_images)


def samples_of(number: int, num_images: int, options: Prepare) -> list[int]:
    """The images of a shard, shuffled over the whole set, so that each shard is a fair sample of it."""
    first = number * options.images_per_shard
    return _order(options.seed, num_images)[first : first + options.images_per_shard].tolist()


def make_shard(source: Source, options: Prepare, number: int, tick: Callable[[], object] = lambda: None) -> ShardRecord:
    """Write a shard and its record, or verify the ones that are there.

    Args:
        source: what `options` describe, opened.
        options: `output` must be absolute.
        number: from 0.
        tick: called after each image.

    Raises:
        UserError: a bad image with on_bad stop; the source fails; the output is full or cannot be written.
    """
    name = shard_name(number)
    fs, path = filesystem(options.output)
    done = _verified(fs, f"{path}/{name}")
    if done is not None:
        for _ in done.samples:
            tick()
        return done
    record = ShardRecord(name, "", 0, 0, [])
    with writing(options.output, name, STAYS) as file:
        writer = Writer(file)
        with tarfile.open(fileobj=writer, mode="w", format=tarfile.GNU_FORMAT) as tar:  # ty: ignore[no-matching-overload]
            samples = samples_of(number, len(source), options)
            for place, sample in enumerate(samples):
                if place % AHEAD == 0:
                    read_ahead(source, samples[place : place + AHEAD])
                packed = _packed(source, sample, options, record)
                if packed is not None:
                    key = f"{sample:08d}-{_stem(source.name(sample))}"
                    _add(tar, f"{key}.{packed.suffix}", packed.data)
                    _add(tar, f"{key}.cls", str(int(source.labels[sample])).encode())
                    record.samples.append(sample)
                tick()
        record.sha256, record.bytes, record.images = writer.sha256, writer.bytes, len(record.samples)
    with writing(options.output, f"{name}.json", STAYS) as file:
        file.write((json.dumps(asdict(record), indent=1) + "\n").encode())
    return record


def _packed(source: Source, sample: int, options: Prepare, record: ShardRecord) -> Packed | None:
    name = source.name(sample)
    try:
        if isinstance(source, IndexedSource):
            data = _read(source, sample)
            packed = pack(data, name, options.format, options.shorter_side, options.quality)
        else:
            packed = encode(reduce(source.image(sample), options.shorter_side), options.format, options.quality)
    except BadImage as error:
        if options.on_bad == "stop":
            raise UserError(f"{error}; mend or remove it, or leave it out with --on_bad skip") from error
        record.skipped.append(str(error))
        return None
    for what in packed.changes:
        change = record.changes.setdefault(what, {"count": 0, "examples": []})
        change["count"] += 1
        if what not in ("bytes kept", "reduced") and len(change["examples"]) < EXAMPLES:
            change["examples"].append(name)
    return packed


def _read(source: IndexedSource, sample: int) -> bytes:
    try:
        return source.data(sample)
    except BadImage as error:
        if isinstance(error.__cause__, OSError):  # a network that fails is no property of the image
            raise UserError(f"{error}; what storage does not give is never skipped, run the same again") from error
        raise


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # times, owners and modes are TarInfo's constants
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _stem(name: str) -> str:
    """The file name or row of an image, as far as it may be in a key: WebDataset cuts keys at the first dot."""
    last = re.split(r"[/:]", name)[-1]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", last.partition(".")[0])[-STEM:] or "image"


def _verified(fs: Any, path: str) -> ShardRecord | None:
    """The record of a shard that is whole."""
    try:
        record = ShardRecord(**json.loads(fs.cat_file(f"{path}.json")))
        if fs.size(path) != record.bytes:
            return None
        sha = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while block := file.read(BLOCK):
                sha.update(block)
    except StorageError:
        raise
    except (OSError, ValueError, TypeError):  # not there, or damaged: it is made again
        return None
    return record if sha.hexdigest() == record.sha256 else None


def counts(records: list[ShardRecord], labels: np.ndarray, num_classes: int) -> list[int]:
    """Images of each class."""
    samples = np.concatenate([np.asarray(record.samples, np.int64) for record in records])
    return np.bincount(labels[samples], minlength=num_classes).tolist()
