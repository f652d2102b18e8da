"""Small data sets for the tests of sources. Image i is of grey level i, so that it tells its number."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from backbone.data.sources import Source

Member = tuple[str, bytes]
TRAIN = "set-train-{000000..000001}.tar"
ALL = "set-{train-000000,train-000001,val-000000}.tar"


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    """An image that tells its number: constant in colour."""
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def kept(batches: Iterable[Any]) -> list[Any]:
    """All of them, each with memory of its own: a loader's is filled in again."""
    return [{**batch, "images": batch["images"].clone()} for batch in batches]


def values(source: Source) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def forget(*_args, **_kwargs):
    raise AssertionError("scanned again")


def make_folder(root: Path) -> Path:
    names = ["b/2.png", "b/10.PNG", "b/sub/1.png", "b/sub-a/1.png", "a/z.png", "a/A.png", "c c/é.png", "c c/x.Jpeg"]
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    (root / "a" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def samples(numbers: range, keys: str = "n{label}/img_{i}") -> list[Member]:
    return [
        member
        for i in numbers
        for key in [keys.format(label=i % 3, i=i)]
        for member in ((f"{key}.png", png(i)), (f"{key}.cls", f"{i % 3}\n".encode()))
    ]


def make_tar(path: Path, members: list[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def make_shards(root: Path) -> Path:
    make_tar(root / "set-train-000000.tar", samples(range(0, 7)))
    make_tar(root / "set-train-000001.tar", samples(range(7, 12)))
    make_tar(root / "set-val-000000.tar", samples(range(12, 15)))
    return root


def make_parquet(path: Path, numbers: range, image: str = "image", label: str = "label", names=None, plain=False):
    data = [png(i) for i in numbers]
    kind = pa.binary() if plain else pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    images = data if plain else [{"path": None, "bytes": one} for one in data]
    table = pa.table({image: pa.array(images, kind), label: pa.array([i % 3 for i in numbers], pa.int64())})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path
