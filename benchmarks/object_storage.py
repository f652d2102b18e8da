"""Training images and checkpoints in an object store beside a local disk.

The store is moto's S3 server, a process of Python on this machine: it answers far fewer requests a second than a real
one, and shares its cores, so that rates without keeping say what moto gives; those of what is kept, and how long the
loop stands still for an upload, do not depend on it. `--latency` has a proxy before it wait so long with each answer.
"""

import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
from PIL import Image
from results import parser, spread, write

from backbone.data.batches import TrainSet
from backbone.data.options import StoredData
from backbone.data.sources import open_source
from backbone.data.synthetic import SyntheticSource
from backbone.storage import filesystem
from backbone.training.state import Checkpointer, Progress, Store
from tests.object_store import KEYS, Proxy, moto


def write_shards(folder: Path, images: int, side: int) -> None:
    """Rendered scenes as JPEG, 250 a shard."""
    source = SyntheticSource(0, images, side, "train")
    folder.mkdir()
    for first in range(0, images, 250):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for i in range(first, min(first + 250, images)):
                data = io.BytesIO()
                Image.fromarray(source.image(i)).save(data, "JPEG", quality=90)
                for name, content in (
                    (f"{i:06d}.jpg", data.getvalue()),
                    (f"{i:06d}.cls", str(source.labels[i]).encode()),
                ):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def epochs(place: str, cache: str, keep_gb: float, images: int, side: int, count: int) -> list[float]:
    """Images a second of each epoch, loaded in this process in batches of 64."""
    source = open_source("webdataset", place, cache, keep_gb)
    data = StoredData(source="webdataset", train=place, val=place, size=side, workers=0)
    train = TrainSet(source, data, 0, (0, 0, 0))
    rates = []
    for epoch in range(count):
        began = time.perf_counter()
        for first in range(epoch * images, (epoch + 1) * images - 63, 64):
            train.batch(range(first, first + 64))
        rates.append(images // 64 * 64 / (time.perf_counter() - began))
    return rates


def uploading(url: str, megabytes: int) -> dict[str, object]:
    """One checkpoint of so many bytes: how long `hold` stands still, and when it was complete."""
    state = {"model": {"weight": torch.randn(megabytes * 250_000)}}
    matrix = torch.randn(512, 512)

    def some_steps(going: Callable[[], bool]) -> list[float]:
        times = []
        while going():
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(1e3 * (time.perf_counter() - began))
        return times

    until = time.perf_counter() + 5
    alone = some_steps(lambda: time.perf_counter() < until)
    checkpointer = Checkpointer(Store(url), keep=1)
    stalls = []
    for step in (1, 2):  # the first allocates the copy
        began = time.perf_counter()
        checkpointer.hold(state, Progress(step=step), {})
        stalls.append(1e3 * (time.perf_counter() - began))
        if step == 1:
            checkpointer.commit()
            checkpointer.wait()
    began = time.perf_counter()
    checkpointer.commit()
    writer = checkpointer._writer
    assert writer is not None
    during = some_steps(writer.is_alive)
    checkpointer.wait()
    seconds = time.perf_counter() - began
    return {
        "what": f"checkpoint of {megabytes} MB",
        "from": url.partition("://")[0] if "://" in url else "disk",
        "the loop stands still, ms": f"{stalls[1]:.0f} (first: {stalls[0]:.0f})",
        "complete after, s": f"{seconds:.1f}",
        "a step of 512x512 beside it, ms": f"{np.median(during):.2f} (alone {np.median(alone):.2f}), "
        f"slowest {max(during):.0f} (alone {max(alone):.0f})",
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=int, default=1024)
    words.add_argument("--side", type=int, default=224)
    words.add_argument("--epochs", type=int, default=3)
    words.add_argument("--latency", type=float, default=0.02, help="seconds that each answer takes longer")
    words.add_argument("--state", type=int, default=500, help="MB of the checkpoint")
    given = words.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, moto() as server:
        proxy = Proxy(server)
        os.environ |= {**KEYS, "AWS_ENDPOINT_URL": server}
        fs, _ = filesystem("s3://x")
        fs.mkdir("bucket")
        folder = Path(name) / "shards"
        write_shards(folder, given.images, given.side)
        for file in sorted(folder.glob("*.tar")):
            fs.put_file(str(file), f"bucket/shards/{file.name}")
        slow = f"s3://bucket/shards?scheme=http&endpoint_override={proxy.url.removeprefix('http://')}"
        proxy.rule = lambda method, path: time.sleep(given.latency) or ""
        ways = {
            "disk": (str(folder), 0.0),
            "s3, nothing kept": ("s3://bucket/shards", 0.0),
            f"s3 + {1e3 * given.latency:.0f} ms, nothing kept": (slow, 0.0),
            f"s3 + {1e3 * given.latency:.0f} ms, all kept": (slow, 10.0),
        }
        rows: list[dict[str, object]] = []
        for way, (place, keep) in ways.items():
            rates = epochs(place, f"{name}/cache-{way}", keep, given.images, given.side, given.epochs)
            later, low, high = spread(rates[1:])
            rows.append(
                {
                    "shards from": way,
                    "first epoch, images/s": rates[0],
                    "later epochs, images/s": later,
                    "quartiles": f"{low:.0f} to {high:.0f}",
                    "epochs": given.epochs,
                }
            )
        uploads = [uploading(place, given.state) for place in (f"{name}/checkpoints", "s3://bucket/checkpoints")]
        write(given.output, rows, uploads=uploads)
        for one in uploads:
            print(one)
        proxy.close()


if __name__ == "__main__":
    main()
