"""A detector behind HTTP on this machine: what a request costs beside the model called in a loop, and what it survives.

In one run, so that all see the same machine: the loop and the server with 1, 8 and 64 clients in turns, the loop before
and after each, latencies, the processors' time that each process took for a request, a replica killed under load, and a
soak whose memory is watched. On two cores a ratio says what it says of a machine that does nothing else: look at
`load_1min before`. Damaged bodies: `damaged_bodies.py`.

    python benchmarks/serving.py --detector runs/my-detector/artifact --image photo.jpg
    python benchmarks/serving.py --detector runs/my-detector/artifact --image photo.jpg --requests 400 --soak 2000
"""

import os
import signal
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from results import parser, write

import detection
from backbone.cluster import connect, set_defaults
from backbone.data.decode import decode
from detection.serving.options import Serving

CLIENTS = (1, 8, 64)
TURNS = 3


def load(url: str, bodies: list[bytes], clients: int) -> tuple[float, list[float], Counter[str]]:
    """Every body asked about once by so many clients: seconds in all, seconds of each, and what came (status)."""
    numbers, times, came = count(), [], Counter[str]()

    def client() -> None:
        with httpx.Client(timeout=300) as session:
            while (number := next(numbers)) < len(bodies):
                began = time.perf_counter()
                try:
                    came[str(session.post(url, content=bodies[number]).status_code)] += 1
                except httpx.HTTPError as error:  # a cut connection is what is looked for
                    came[type(error).__name__] += 1
                times.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(client) for _ in range(clients)]:
            one.result()
    return time.perf_counter() - began, times, came


def serving_processes(title: str) -> list[psutil.Process]:
    """Those whose titles hold that."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if title in (one.info["cmdline"] or [""])[0]]


def replica(name: str) -> int:
    """Process id of the replica."""
    return serving_processes(f":ServeReplica:{name}:replica")[0].pid


def megabytes(name: str) -> float:
    """Resident, of the replica and the front."""
    return sum(process.memory_info().rss for process in serving_processes(f":ServeReplica:{name}:")) / 2**20


def seconds_of(name: str, port: int) -> dict[str, float]:
    """Processors' time so far, of Serve's proxy, the front, the replica, and this process, which asks."""
    proxies = [
        one for one in serving_processes("ProxyActor") if port in {net.laddr.port for net in one.net_connections()}
    ]
    found = {who: serving_processes(f":ServeReplica:{name}:{who}") for who in ("front", "replica")}
    ours = {"proxy": proxies, **found, "client": [psutil.Process()]}
    return {who: sum(_seconds(one) for one in processes) for who, processes in ours.items()}


def _seconds(process: psutil.Process) -> float:
    taken = process.cpu_times()
    return taken.user + taken.system


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--detector", required=True, help="artifact of a detector")
    words.add_argument("--image", type=Path, required=True, help="a JPEG or PNG to ask about")
    words.add_argument("--requests", type=int, default=200, help="of a turn")
    words.add_argument("--soak", type=int, default=2000, help="requests while memory is watched")
    words.add_argument("--port", type=int, default=8741)
    given = words.parse_args()
    set_defaults()
    from detection.serving.run import start

    connect(print)
    data = given.image.read_bytes()
    loaded, image = detection.load(given.detector), decode(data, given.image.name)
    torch.set_num_threads(1)
    url = f"http://127.0.0.1:{given.port}/detect"
    name = f"benchmark-{given.port}"  # processes are found by it
    end = start(Serving(artifact=(f"asked={given.detector}",), name=name, port=given.port))
    same = [data] * given.requests
    wanted = detection.detect(loaded, [image])[0]
    told = httpx.post(url, content=data, timeout=300).json()
    bits = bool(np.array_equal(np.array(told["boxes"], np.float32).reshape(-1, 4), wanted["boxes"]))
    load(url, same[: given.requests // 4], 8)  # warms both up
    before = os.getloadavg()[0]

    def loop() -> float:
        began = time.perf_counter()
        for one in same:
            detection.detect(loaded, [decode(one, "image")])
        return (time.perf_counter() - began) / given.requests

    calls = [loop()]
    shares: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    times: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    taken: dict[int, Counter[str]] = {clients: Counter() for clients in CLIENTS}
    for _ in range(TURNS):
        for clients in CLIENTS:
            so_far = seconds_of(name, given.port)
            whole, each, came = load(url, same, clients)
            taken[clients] += Counter({who: now - so_far[who] for who, now in seconds_of(name, given.port).items()})
            assert set(came) == {"200"}, came
            calls.append(loop())
            shares[clients].append((calls[-2] + calls[-1]) / 2 * given.requests / whole)
            times[clients] += each
    call, rows = statistics.median(calls), []
    for clients in CLIENTS:
        p50, p99 = np.percentile(times[clients], [50, 99]).tolist()
        cost = {
            f"{who}, ms of a core": 1000 * taken[clients][who] / (TURNS * given.requests)
            for who in ("proxy", "front", "replica", "client")
        }
        rows.append(
            {
                "clients": clients,
                "throughput over the loop's": statistics.median(shares[clients]),
                "least": min(shares[clients]),
                "most": max(shares[clients]),
                "p50, times a call in the loop": p50 / call,
                "p99, times a call in the loop": p99 / call,
                "p50, ms": 1000 * p50,
                "p99, ms": 1000 * p99,
                "requests": TURNS * given.requests,
                **cost,
            }
        )
    write(given.output, rows)
    more: dict[str, Any] = {
        "load_1min before": before,
        "a call in the loop, ms": 1000 * call,
        "boxes equal to detection.detect to the last bit": bits,
    }
    pid = replica(name)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, url, same, 8)
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        more["a replica killed, 8 clients"] = {**running.result()[2], "another process after it": replica(name) != pid}
    if given.soak:
        watched, step = [megabytes(name)], max(1, given.soak // 8)
        for _ in range(8):
            load(url, [data] * step, 8)
            watched.append(megabytes(name))
        more["soak"] = {
            "requests": 8 * step,
            "resident MB of replica and front, in turn": [round(one) for one in watched],
        }
    write(given.output, rows, **more)
    end()


if __name__ == "__main__":
    main()
