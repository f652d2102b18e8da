"""Parquet in Hugging Face's layout. Compressed rows cannot be read at random, so images are copied out once."""

import errno
import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from backbone.data.index import CHOOSE, Arrays, IndexedSource, is_fresh, map_arrays, pack, store, tabulate
from backbone.data.listing import Listing, list_files
from backbone.errors import UserError
from backbone.storage import filesystem

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
ROWS = 256  # read at a time; some 30 MB of ImageNet


def open_parquet(location: str, cache: str | None = None) -> IndexedSource:
    """Open files with columns `image` or `img`, and `label`, `labels` or `fine_label`.

    Images are structs of bytes and path, or binary; labels are integers. The compressed images are copied into one file
    in the cache, once; processes of a machine wait for the one that copies. Classes are the ClassLabel names in the
    schema's metadata, or else the labels.

    Args:
        location: file, directory, glob or brace pattern, see `list_files`.
        cache: see `cache_directory`. Needs as much room as the images.

    Raises:
        UserError: no files, no such columns, a row without image or label, or too little room in the cache.
    """
    listing = list_files(location, ".parquet")
    path = listing.cached("parquet", cache)
    blob = path.with_suffix(".bin")
    if not _is_complete(path, blob, listing.state):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot copy the images of {location} to {path.parent}: {error.strerror}; {CHOOSE}"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by closing
            if not _is_complete(path, blob, listing.state):
                store([path], listing.state, _build(listing, blob))
    return IndexedSource(path, str(path.parent), str(path.parent), listing.shown)


def _is_complete(path: Path, blob: Path, state: str) -> bool:
    return is_fresh(path, state) and blob.is_file() and blob.stat().st_size == int(map_arrays(path)["sizes"].sum())


def _build(listing: Listing, blob: Path) -> Arrays:
    fs, _ = filesystem(listing.url)
    paths = [f"{listing.root}/{name}" for name in listing.names]
    needed, rows, classes = 0, [], ()
    for path, name in zip(paths, listing.names, strict=True):
        with fs.open(path, "rb") as file:
            size, num_rows, classes = _inspect(pq.ParquetFile(file), f"{listing.shown}/{name}")
        needed += size
        rows.append(num_rows)
    if not sum(rows):
        raise UserError(f"{listing.shown}: {', '.join(listing.names)} have no rows")
    shortage = f"the images of {listing.shown} need {needed} bytes in {blob.parent}, which has {{}} free; {CHOOSE}"
    if (free := shutil.disk_usage(blob.parent).free) < needed:
        raise UserError(shortage.format(free))
    aside = blob.with_name(f"{blob.name}.{uuid.uuid4().hex}.tmp")
    labels, sizes = [], []
    try:
        with aside.open("xb") as out, tqdm(total=sum(rows), desc="copying images", disable=None) as bar:
            for path, name in zip(paths, listing.names, strict=True):
                with fs.open(path, "rb") as file:
                    for some_labels, some_sizes in _copy(pq.ParquetFile(file), out, f"{listing.shown}/{name}"):
                        labels.append(some_labels)
                        sizes.append(some_sizes)
                        bar.update(len(some_labels))
        aside.replace(blob)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(shortage.format(shutil.disk_usage(blob.parent).free)) from error
    finally:
        aside.unlink(missing_ok=True)
    label, size = np.concatenate(labels), np.concatenate(sizes)
    classes = classes or tuple(str(one) for one in range(int(label.max()) + 1))
    if label.max() >= len(classes):
        raise UserError(f"{listing.shown}: label {label.max()}, but the schema names {len(classes)} classes")
    names = (f"{name}:row {row}" for name, count in zip(listing.names, rows, strict=True) for row in range(count))
    return (
        tabulate("parquet", names, label, size, classes)
        | pack("files", [blob.name])
        | {"file_ids": np.zeros(len(label), np.int32), "starts": np.cumsum(size) - size}
    )


def _inspect(file: pq.ParquetFile, shown: str) -> tuple[int, int, tuple[str, ...]]:
    """Bytes of the image column before compression, number of rows, and class names, () where there are none."""
    image, label = _columns(file.schema_arrow, shown)
    groups = (file.metadata.row_group(g) for g in range(file.metadata.num_row_groups))
    columns = (group.column(c) for group in groups for c in range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema in (image, f"{image}.bytes"))
    metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return size, file.metadata.num_rows, tuple(names)


def _columns(schema: pa.Schema, shown: str) -> tuple[str, str]:
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise UserError(
            f"{shown}: has the columns {', '.join(schema.names)}; "
            f"needs {' or '.join(IMAGE_COLUMNS)}, and {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}"
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{shown}: column {image} is {kind}; needs struct<bytes: binary, path: string> or binary")
    if not pa.types.is_integer(schema.field(label).type):
        raise UserError(f"{shown}: column {label} is {schema.field(label).type}; needs integers")
    return image, label


def _copy(file: pq.ParquetFile, out: BinaryIO, shown: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Append the images to `out`; yield labels and sizes in bytes, both int64, batch by batch."""
    image, label = _columns(file.schema_arrow, shown)
    row = 0
    for batch in file.iter_batches(ROWS, columns=[image, label], use_threads=False):
        images, labels = batch.column(image), batch.column(label)
        if pa.types.is_struct(images.type):
            field = pc.StructFieldOptions([images.type.get_field_index("bytes")])
            images = pc.call_function("struct_field", [images], field)
        for what, column in ((image, images), (label, labels)):
            if column.null_count:
                where = f"{shown}:row {row + column.is_null().index(True).as_py()}"
                raise UserError(f"{where}: {what} holds no {'bytes' if what == image else 'label'}")
        labels = labels.to_numpy(zero_copy_only=False).astype(np.int64)
        if labels.min() < 0:
            raise UserError(f"{shown}:row {row + labels.argmin()}: {label} is {labels.min()}; this split has no labels")
        sizes = pc.call_function("binary_length", [images]).to_numpy(zero_copy_only=False).astype(np.int64)
        _, offsets, data = images.buffers()
        wide = np.int64 if pa.types.is_large_binary(images.type) else np.int32
        first = int(np.frombuffer(offsets, wide)[images.offset])
        if sizes.sum():
            out.write(data[first : first + int(sizes.sum())])  # no nulls, so the values are one run
        row += len(labels)
        yield labels, sizes
