"""A detector behind HTTP on this machine: what a request costs beside the model called in a loop, what it survives.

In one run, so that all see the same machine, and for a small net and a usual one (random weights; `--detector` asks
others): the loop, which has one thread as the replica's net has, and the server with 1, 8 and 64 clients in turns,
the loop before and after each; latencies; the processors' time that each process took for a request; with the first net
a replica killed under load, and a soak whose memory is watched, process by process. On two cores a ratio says what it
says of a machine that does nothing else: look at `load_1min before`. Who asks takes time of the same cores; a second
ratio leaves it out. Damaged bodies: `damaged_bodies.py`.

    python benchmarks/serving.py --image photo.jpg
    python benchmarks/serving.py --image photo.jpg --detector runs/my-detector/artifact --seconds 20 --soak 100000
"""

import asyncio
import os
import re
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from results import parser, save, write

import detection
from backbone.cluster import connect, set_defaults
from backbone.data.decode import decode
from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import NetOptions
from detection import artifact
from detection.data.contract import Categories
from detection.nets import build
from detection.options import detector_options
from detection.serving.options import Limits, Serving

CLIENTS = (1, 8, 64)
HOST = "127.0.0.1"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
TITLES = {"ProxyActor": "proxy", ":front#": "front", ":replica#": "replica"}
FEW = {"channels": 64, "hidden": 256, "rpn": {"pre_nms_test": 100, "post_nms_test": 30}}
SIZES: dict[str, tuple[int, float, int, dict[str, Any]]] = {  # depth, width, shorter side, options of the detector
    "small resnet-18": (18, 0.5, 112, FEW),
    "resnet-50": (50, 1.0, 480, {}),
}


def make(folder: Path) -> dict[str, str]:
    """Name -> artifact of a Faster R-CNN with FPN, of random weights: it finds many boxes in anything."""
    found = {}
    for name, (depth, width, side, more) in SIZES.items():
        torch.manual_seed(0)
        net = build_backbone(NetOptions(net="resnet", depth=depth, width=width), 3)
        options = detector_options({"kind": "fpn", "norm": "trainable", "freeze_at": 0, **more})
        inputs = InputConvention(size=224, channel_order="RGB", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        found[name] = str(folder / name.replace(" ", "-"))
        sides = (side, side * 5 // 3)
        artifact.save(found[name], build(options, net, 3), inputs, Categories(tuple("abc"), (1, 2, 3)), sides, {})
    return found


async def asks(numbers: Iterator[int], port: int, body: bytes, times: list[float], came: Counter[str]) -> None:
    """One client, on one connection as long as it holds: as little work as a client can have, for it has no core of
    its own."""
    head = f"POST /detect HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection = None
    for _ in numbers:
        began = time.perf_counter()
        try:
            if connection is None:
                connection = await asyncio.open_connection(HOST, port)
            reader, writer = connection
            writer.write(head + body)
            told = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(told)
            assert length, told
            await reader.readexactly(int(length[1]))
            came[told.split(b" ", 2)[1].decode()] += 1
            if b"connection: close" in told.lower():
                writer.close()
                connection = None
        except (OSError, asyncio.IncompleteReadError) as error:  # a cut connection is what is looked for
            came[type(error).__name__] += 1
            connection = None
        times.append(time.perf_counter() - began)


def load(port: int, body: bytes, count: int, clients: int) -> tuple[float, list[float], Counter[str]]:
    """So many requests of so many clients: seconds in all, seconds of each, and what came (status)."""
    times, came, numbers = [], Counter[str](), iter(range(count))

    async def main() -> None:
        await asyncio.gather(*(asks(numbers, port, body, times, came) for _ in range(clients)))

    began = time.perf_counter()
    asyncio.run(main())
    return time.perf_counter() - began, times, came


def processes(port: int) -> dict[str, list[psutil.Process]]:
    """This process, which asks and calls the loop, and all that came of it: those of one name together."""
    me = psutil.Process()
    found: dict[str, list[psutil.Process]] = {"client": [me]}
    for one in me.children(recursive=True):
        title = " ".join(one.cmdline()[:1])
        ours = f"benchmark-{port}-" in title or "ProxyActor" in title
        name = next((name for part, name in TITLES.items() if ours and part in f"{title}#"), "rest of Ray")
        found.setdefault(name, []).append(one)
    return found


def seconds_of(port: int) -> Counter[str]:
    """Processors' time so far, by name."""
    taken = {name: [one.cpu_times() for one in found] for name, found in processes(port).items()}
    return Counter({name: sum(one.user + one.system for one in times) for name, times in taken.items()})


def megabytes(port: int) -> dict[str, float]:
    """Memory of their own of the processes that a request goes through, what they share with others left out."""
    found = processes(port)
    names = ("proxy", "front", "replica")
    return {name: round(sum(one.memory_full_info().uss for one in found[name]) / 2**20, 1) for name in names}


def measure(name: str, url: str, port: int, data: bytes, seconds: float, turns: int) -> list[dict[str, Any]]:
    """One row for each number of clients."""
    loaded, image = detection.load(url), decode(data, "image")
    wanted = detection.detect(loaded, [image])[0]
    told = httpx.post(f"http://{HOST}:{port}/detect", content=data, timeout=300).json()
    same = np.array_equal(np.array(told["boxes"], np.float32).reshape(-1, 4), wanted["boxes"])
    same &= np.array_equal(np.array(told["scores"], np.float32), wanted["scores"])

    def loop() -> float:
        """Seconds a call."""
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            detection.detect(loaded, [decode(data, "image")])
            calls += 1
        return (time.perf_counter() - began) / calls

    load(port, data, 16, 8)  # warms both up
    calls = [loop()]
    counts = {clients: max(clients + 16, round(seconds / calls[0])) for clients in CLIENTS}
    shares: dict[int, list[tuple[float, float]]] = {clients: [] for clients in CLIENTS}
    times: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    taken: dict[int, Counter[str]] = {clients: Counter() for clients in CLIENTS}
    for _ in range(turns):
        for clients in CLIENTS:
            before = seconds_of(port)
            whole, each, came = load(port, data, counts[clients], clients)
            cost = seconds_of(port) - before
            assert set(came) == {"200"}, came
            calls.append(loop())
            call = (calls[-2] + calls[-1]) / 2 * counts[clients]
            others = whole - cost["client"] / min(clients, os.cpu_count() or 1)
            shares[clients].append((call / whole, call / others))
            times[clients] += each
            taken[clients] += cost
    call, rows = statistics.median(calls), []
    for clients in CLIENTS:
        p50, p99 = np.percentile(times[clients], [50, 99]).tolist()
        requests, with_client = turns * counts[clients], [share for share, _ in shares[clients]]
        rows.append(
            {
                "net": name,
                "clients": clients,
                "throughput over the loop's": statistics.median(with_client),
                "least": min(with_client),
                "most": max(with_client),
                "without the client's time": statistics.median(share for _, share in shares[clients]),
                "p50, times a call in the loop": p50 / call,
                "p99, times a call in the loop": p99 / call,
                "p50, ms": 1000 * p50,
                "p99, ms": 1000 * p99,
                "a call in the loop, ms": 1000 * call,
                "requests": requests,
                **{
                    f"{who}, ms of a core": 1000 * taken[clients][who] / requests
                    for who in ("client", "proxy", "front", "replica", "rest of Ray")
                },
                "to the last bit": bool(same),
                "boxes": len(told["boxes"]),
            }
        )
    return rows


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--image", type=Path, required=True, help="a JPEG or PNG to ask about")
    words.add_argument("--detector", nargs="*", help="artifacts to ask in place of the two that are made")
    words.add_argument(
        "--seconds", type=float, default=5, help="of a turn, of the loop's and about that of the server's"
    )
    words.add_argument("--turns", type=int, default=3, help="of the loop and of each number of clients")
    words.add_argument("--soak", type=int, default=2000, help="requests while memory is watched")
    words.add_argument("--port", type=int, default=8741)
    given = words.parse_args()
    os.environ["RAY_ADDRESS"] = "local"  # of its own, so that what it takes is known
    set_defaults()
    from detection.serving.run import start

    connect(print)
    torch.set_num_threads(1)
    data, port, rows = given.image.read_bytes(), given.port, []
    more: dict[str, Any] = {"load_1min before": os.getloadavg()[0], "bytes of the image": len(data)}
    with tempfile.TemporaryDirectory() as folder:
        asked = {url: url for url in given.detector} if given.detector else make(Path(folder))
        for number, (name, url) in enumerate(asked.items()):
            patient = Limits(seconds=600)  # 64 clients of a net that takes a second wait for a minute
            name_there = f"benchmark-{port}-{number}"  # processes are found by it
            end = start(Serving(artifact=(f"asked={url}",), name=name_there, port=port, limits=patient))
            rows += measure(name, url, port, data, given.seconds, given.turns)
            write(given.output, rows, **more)
            if not number:
                before = seconds_of(port)
                time.sleep(given.seconds)
                idle = seconds_of(port) - before
                more["when nobody asks, ms of a core a second"] = {
                    who: 1000 * taken / given.seconds for who, taken in idle.items()
                }
                more |= survives(port, data, given.soak)
                save(given.output, rows, **more)
            end()


def survives(port: int, data: bytes, soak: int) -> dict[str, Any]:
    """A replica killed under load, and memory in turn over so many requests."""
    (old,) = processes(port)["replica"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, port, data, 120, 8)
        time.sleep(1)
        os.kill(old.pid, signal.SIGKILL)
        came = running.result()[2]
    (new,) = processes(port)["replica"]
    told: dict[str, Any] = {"a replica killed, 8 clients": {**came, "another process after it": new.pid != old.pid}}
    load(port, data, 50, 8)  # what a new process takes for its first requests is no growth
    watched, counts, came = [megabytes(port)], [0], Counter[str]()
    for _ in range(8 if soak else 0):
        came += load(port, data, max(1, soak // 8), 8)[2]
        watched.append(megabytes(port))
        counts.append(came.total())
    told["soak"] = {
        "requests": came.total(),
        "came": came,
        "MB of their own at the begin": watched[0],
        "MB of their own at the end": watched[-1],
        "in turn": [{"requests": count, **each} for count, each in zip(counts, watched, strict=True)],
    }
    return told


if __name__ == "__main__":
    main()
