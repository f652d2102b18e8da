"""Parquet in Hugging Face's layout. Compressed rows cannot be read at random, so images are copied out once."""

import errno
import json
import shutil
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from backbone.data.findings import Findings
from backbone.data.formats import FETCH, HEAD, some, what_is
from backbone.data.index import (
    CHOOSE,
    Arrays,
    IndexedSource,
    is_fresh,
    map_arrays,
    pack,
    store,
    tabulate,
    tell,
    wait_for_turn,
)
from backbone.data.labels import check_names, checked, numbered, within
from backbone.data.listing import Listing, check_one_split, list_files, missing_files
from backbone.data.splits import JUDGED, SPLIT_COLUMNS, words_in
from backbone.errors import UserError
from backbone.storage import filesystem

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MAGIC = b"PAR1"
FULL = (errno.ENOSPC, errno.EDQUOT)
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
        UserError: no files, or those of several splits; one is no Parquet or damaged, has no such columns, or other
            class names than the rest; a row without image or label, or with a label out of range; too little room in
            the cache.
    """
    listing = list_files(location, ".parquet")
    check_one_split(location, listing)
    path = listing.cached("parquet", cache)
    blob = path.with_suffix(".bin")
    if not _is_complete(path, blob, listing.state):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("a+")
        except OSError as error:
            raise UserError(
                f"cannot copy the images of {location} to {path.parent}: {error.strerror}; {CHOOSE}"
            ) from error
        with lock:
            with suppress(OSError):  # a file system without locks
                if not wait_for_turn(lock, path, lambda: _copied(blob)):
                    lock.seek(0)
                    raise UserError(
                        f"{location}: {lock.read().strip() or 'a process'} copies its images to {path.parent} and has "
                        "not come on for an hour; end it (kill -9), and they are copied anew"
                    )
            if not _is_complete(path, blob, listing.state):
                store([path], listing.state, _build(listing, blob))
    here, remarks = str(path.parent), listing.remarks(".parquet").join(missing_files(location, listing))
    return IndexedSource(path, here, here, listing.shown, remarks=remarks, places=listing.files)


def _copied(blob: Path) -> int:
    """Bytes that others have copied until now."""
    with suppress(FileNotFoundError):  # one ended meanwhile
        return sum(aside.stat().st_size for aside in blob.parent.glob(f"{blob.name}.*.tmp"))
    return -1


def _is_complete(path: Path, blob: Path, state: str) -> bool:
    return is_fresh(path, state) and blob.is_file() and blob.stat().st_size == int(map_arrays(path)["sizes"].sum())


@dataclass(frozen=True)
class Content:
    """What a file says of itself."""

    image: str  # column
    label: str  # column
    others: tuple[str, ...]  # columns that are not read
    size: int  # bytes of the images before compression
    rows: int
    names: tuple[str, ...] | None  # of classes, where it has any
    has_metadata: bool  # of Hugging Face's


def _build(listing: Listing, blob: Path) -> Arrays:
    contents = []
    for number in range(len(listing.names)):
        with _opened(listing, number) as (file, shown):
            contents.append(_inspect(file, shown))
    findings = Findings()
    names = _agree(listing, contents, findings)
    if not sum(one.rows for one in contents):
        raise UserError(f"{listing.shown}: {some(listing.names)} have no rows")
    labels, sizes = _unpack(listing, contents, blob)
    label, size = np.concatenate(labels), np.concatenate(sizes)
    images = [f"{name}:row {row}" for name, one in zip(listing.names, labels, strict=True) for row in range(len(one))]

    def where(i: int) -> str:
        return f"{listing.shown}/{images[i]}"

    if names is None:
        name_them = f"name them in the files: datasets.Dataset.class_encode_column({contents[0].label!r}) does"
        classes = numbered(label, where, name_them)
    else:
        classes = list(names)
        check_names(classes, f"{listing.shown}: the schema")
        within(label, classes, where, f"{listing.shown}: the schema")
    return (
        tabulate("parquet", images, label, size, classes)
        | tell(findings)
        | pack("files", [blob.name])
        | {"file_ids": np.zeros(len(label), np.int32), "starts": np.cumsum(size) - size}
    )


@contextmanager
def _opened(listing: Listing, number: int) -> Generator[tuple[pq.ParquetFile, str]]:
    """A file of the listing and how people call it; what goes wrong in reading it names it.

    Raises:
        UserError: it is no Parquet, cut off or damaged.
    """
    fs, _ = filesystem(listing.url)
    path, shown = f"{listing.root}/{listing.names[number]}", f"{listing.shown}/{listing.names[number]}"
    try:
        with fs.open(path, "rb") as file:
            try:
                yield pq.ParquetFile(file, page_checksum_verification=True), shown
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # Arrow's own have none
                    raise
                file.seek(0)
                head = file.read(HEAD)
                reason = " ".join(str(error).split())
                damaged = f"is cut off or damaged, or no Parquet ({reason}); {FETCH}"
                raise UserError(f"{shown}: {(not head.startswith(MAGIC) and what_is(head)) or damaged}") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"{shown}: cannot be read ({error.strerror or error}); mend or remove it") from error


def _agree(listing: Listing, contents: list[Content], findings: Findings) -> tuple[str, ...] | None:
    """The names of classes that all files share; None where none has any.

    Raises:
        UserError: files differ in the columns to be read, or in what they call a label.
    """
    first = next((one for one in contents if one.rows), contents[0])
    whose = listing.names[contents.index(first)]
    named = next((i for i, one in enumerate(contents) if one.names is not None), None)
    names = None if named is None else contents[named].names
    for name, one in zip(listing.names, contents, strict=True):
        shown = f"{listing.shown}/{name}"
        if not one.rows:
            findings.add("warning", "files without rows", "written by mistake?", shown)
            continue
        if (one.image, one.label) != (first.image, first.label):
            raise UserError(
                f"{shown}: would be read by its columns {one.image} and {one.label}, but {whose} by "
                f"{first.image} and {first.label}; name files of one form by a glob, or rename the columns"
            )
        if one.names is not None and named is not None and one.names != names:
            raise UserError(f"{shown}: {_difference(names or (), one.names, listing.names[named])}")
        if one.names is None and named is not None:
            remedy = f"labels are taken to mean what they do in {listing.names[named]}"
            findings.add("warning", "files that name no classes, beside some that do", remedy, shown)
        elif one.names is None and one.has_metadata:
            findings.add("note", "files whose metadata name no classes", "classes are called by their numbers", shown)
    for column in sorted({column for one in contents if one.rows for column in one.others}):
        remedy = f"images are read from {first.image}, labels from {first.label}"
        findings.add("note", "columns that are not read", remedy, column)
    return names


def _difference(names: tuple[str, ...], others: tuple[str, ...], name: str) -> str:
    for label, (one, other) in enumerate(zip(names, others, strict=False)):
        if one != other:
            order = ": the same classes in another order" if sorted(names) == sorted(others) else ""
            return (
                f"calls label {label} {other!r}, but {name} calls it {one!r}{order}; renumber one of them, such as by "
                "datasets.Dataset.align_labels_with_mapping"
            )
    return f"names {len(others)} classes, but {name} names {len(names)}; write them with one ClassLabel"


def _unpack(listing: Listing, contents: list[Content], blob: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Copy the images into `blob`, one after the other; labels and sizes in bytes, int64 [rows], of each file.

    Raises:
        UserError: there is too little room, or a file does not hold what it says.
    """
    needed = sum(one.size for one in contents)
    shortage = f"the images of {listing.shown} need {needed} bytes in {blob.parent}, which has {{}} free; {CHOOSE}"
    if (free := shutil.disk_usage(blob.parent).free) < needed:
        raise UserError(shortage.format(free))
    aside = blob.with_name(f"{blob.name}.{uuid.uuid4().hex}.tmp")
    labels, sizes = [], []
    try:
        with (
            aside.open("xb") as out,
            tqdm(total=sum(one.rows for one in contents), desc="copying images", disable=None) as bar,
        ):
            for number, one in enumerate(contents):
                parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
                with _opened(listing, number) as (file, shown):
                    for part in _copy(file, one, out, shown) if one.rows else ():
                        parts.append(part)
                        bar.update(len(part[0]))
                labels.append(np.concatenate([part[0] for part in parts]))
                sizes.append(np.concatenate([part[1] for part in parts]))
                if len(labels[-1]) != one.rows:
                    raise UserError(f"{shown}: has {len(labels[-1])} rows and says {one.rows}; {FETCH}")
        aside.replace(blob)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(shortage.format(shutil.disk_usage(blob.parent).free)) from error
    finally:
        aside.unlink(missing_ok=True)
    return labels, sizes


def _inspect(file: pq.ParquetFile, shown: str) -> Content:
    schema = file.schema_arrow
    # pandas gives the columns of no rows no types.
    image, label = _columns(schema, shown) if file.metadata.num_rows else ("", "")
    _check_split_column(file, schema, shown)
    groups = (file.metadata.row_group(g) for g in range(file.metadata.num_row_groups))
    columns = (group.column(c) for group in groups for c in range(group.num_columns))
    metadata = (schema.metadata or {}).get(b"huggingface")
    return Content(
        image,
        label,
        others=tuple(name for name in schema.names if name not in (image, label)),
        size=sum(c.total_uncompressed_size for c in columns if c.path_in_schema in (image, f"{image}.bytes")),
        rows=file.metadata.num_rows,
        names=_class_names(metadata or b"", label),
        has_metadata=metadata is not None,
    )


def _check_split_column(file: pq.ParquetFile, schema: pa.Schema, shown: str) -> None:
    for name in schema.names:
        if name.lower() not in SPLIT_COLUMNS or schema.names.count(name) > 1:
            continue
        called = _class_names((schema.metadata or {}).get(b"huggingface") or b"", name)
        kind = schema.field(name).type
        if _is_text(kind) or (called and pa.types.is_integer(kind)):
            given = set(file.read([name]).column(0).to_pylist())
            values = sorted(called[one] if called and one in range(len(called)) else str(one) for one in given)
            if len(set.union(set(), *map(words_in, values))) > 1:
                raise UserError(
                    f"{shown}: its rows are of several splits by the column {name} ({some(values)}), and {JUDGED}; "
                    "write a file for each"
                )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _class_names(metadata: bytes, label: str) -> tuple[str, ...] | None:
    """The ClassLabel's in Hugging Face's metadata; None where they are of another form."""
    try:
        names = json.loads(metadata)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _columns(schema: pa.Schema, shown: str) -> tuple[str, str]:
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise UserError(
            f"{shown}: has the columns {', '.join(schema.names)}; "
            f"needs {' or '.join(IMAGE_COLUMNS)}, and {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}"
            f"{_renaming(schema, image, label)}"
        )
    for name in (image, label):
        if schema.names.count(name) > 1:
            raise UserError(f"{shown}: has several columns called {name}; rename all but one")
    kind = schema.field(image).type
    if not _is_bytes(kind):
        remedy = f", which datasets.Dataset.cast_column({image!r}, datasets.Image()) makes of paths" * _is_text(kind)
        raise UserError(
            f"{shown}: column {image} is {kind}; needs struct<bytes: binary, path: string> or binary{remedy}"
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise UserError(
            f"{shown}: column {label} is {schema.field(label).type}; needs integers, which "
            f"datasets.Dataset.class_encode_column({label!r}) makes of names"
        )
    return image, label


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _renaming(schema: pa.Schema, image: str | None, label: str | None) -> str:
    """What to type where one column of another name is of the type that is wanted."""
    lines = []
    for found, wanted, fits in ((image, IMAGE_COLUMNS[0], _is_bytes), (label, LABEL_COLUMNS[0], pa.types.is_integer)):
        fitting = [field.name for field in schema if fits(field.type)]
        if found is None and len(fitting) == 1:
            lines.append(f"datasets.Dataset.rename_column({fitting[0]!r}, {wanted!r})")
    return f"; {' and '.join(lines)}" if lines else ""


def _copy(file: pq.ParquetFile, content: Content, out: BinaryIO, shown: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Append the images to `out`; yield labels and sizes in bytes, both int64, batch by batch."""
    row = 0
    for batch in file.iter_batches(ROWS, columns=[content.image, content.label], use_threads=False):
        if not len(batch):
            continue
        given, labels = batch.column(content.image), batch.column(content.label)
        images = _field(given, "bytes") if pa.types.is_struct(given.type) else given
        for what, column in ((content.image, images), (content.label, labels)):
            if column.null_count:
                at = column.is_null().index(True).as_py()
                where = f"{shown}:row {row + at}"
                if what == content.label:
                    raise UserError(f"{where}: {what} holds no label; fill or remove the row")
                raise UserError(f"{where}: {what} holds no bytes{_instead(given, at)}; fill or remove the row")
        for label in pc.call_function("min_max", [labels]).as_py().values():  # as they are: int64 would wrap
            checked(label, f"{shown}:row {row + pc.index(labels, pa.scalar(label, labels.type)).as_py()}")
        sizes = pc.call_function("binary_length", [images]).to_numpy(zero_copy_only=False).astype(np.int64)
        _, offsets, data = images.buffers()
        wide = np.int64 if pa.types.is_large_binary(images.type) else np.int32
        first = int(np.frombuffer(offsets, wide)[images.offset])
        if sizes.sum():
            out.write(data[first : first + int(sizes.sum())])  # no nulls, so the values are one run
        row += len(labels)
        yield labels.to_numpy(zero_copy_only=False).astype(np.int64), sizes


def _field(images: pa.Array, name: str) -> pa.Array:
    field = pc.StructFieldOptions([images.type.get_field_index(name)])
    return pc.call_function("struct_field", [images], field)


def _instead(images: pa.Array, at: int) -> str:
    """The path that an image without bytes may have, which leads nowhere on other machines."""
    path = images[at].as_py().get("path") if pa.types.is_struct(images.type) and images[at].is_valid else None
    return f", but a path, {path}: such files were saved without their images" if path else ""
