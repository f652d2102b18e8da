"""Damaged bodies against the HTTP application in one process, without Ray or a socket: what it answers, what it keeps.

The application, the decoder and the net are those that `jobs/serve.py` runs. Bodies are a JPEG and a PNG of the same
picture with bytes changed in the header or anywhere, cut, with runs zeroed, swapped or doubled, and noise after the
first bytes of a format; a seed each. Memory is that of the process, so that a leak of decoded pictures is seen.

    python benchmarks/damaged_bodies.py --detector runs/my-detector/artifact --image photo.jpg
"""

import asyncio
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
from results import parser, write

from backbone.data.decode import decode
from detection.serving.app import make_app
from detection.serving.models import answers, described, load, look, prepare_process
from detection.serving.options import Limits
from detection.serving.questions import Answer, Question, Refused

TOGETHER = 8
EXPECTED = {200, 400, 413, 415}
WAYS = ("header bytes", "bytes anywhere", "cut", "a run zeroed", "two runs swapped", "a run doubled", "noise")


def damaged(forms: list[bytes], number: int) -> tuple[str, bytes]:
    """How a body is damaged, and the body; now and then it is an image all the same."""
    draw, way = np.random.default_rng(number), WAYS[number % len(WAYS)]
    data = bytearray(forms[int(draw.integers(len(forms)))])
    size = len(data)
    first, second = sorted(draw.integers(0, size, 2).tolist())
    run = int(draw.integers(1, 512))
    if way in ("header bytes", "bytes anywhere"):
        for place in draw.integers(0, min(size, 200) if way == "header bytes" else size, 8).tolist():
            data[place] = int(draw.integers(256))
    elif way == "cut":
        del data[second:]
    elif way == "a run zeroed":
        data[second : second + run] = bytes(len(data[second : second + run]))
    elif way == "two runs swapped":
        run = min(run, second - first)
        data[first : first + run], data[second : second + run] = data[second : second + run], data[first : first + run]
    elif way == "a run doubled":
        data[second:second] = data[second : second + run]
    else:
        data[4:] = draw.bytes(int(draw.integers(1, size)))
    return way, bytes(data)


async def ask_all(client: httpx.AsyncClient, forms: list[bytes], share: range) -> Counter[tuple[str, str]]:
    """(way, status and code) -> how often, of the bodies with those numbers, eight under way at a time."""
    came, numbers = Counter[tuple[str, str]](), iter(share)

    async def one_after_the_other() -> None:
        for number in numbers:
            way, body = damaged(forms, number)
            response = await client.post("/detect?min_score=0.5", content=body)
            code = "" if response.status_code == 200 else f" {response.json()['error']['code']}"
            came[way, f"{response.status_code}{code}"] += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(TOGETHER)))
    return came


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--detector", required=True, help="artifact of a detector")
    words.add_argument("--image", type=Path, required=True, help="a picture to damage")
    words.add_argument("--bodies", type=int, default=10_000)
    given = words.parse_args()
    prepare_process(1, use_gpu=False)
    model, limits = load("asked", given.detector), Limits()
    picture = decode(given.image.read_bytes(), given.image.name)
    forms = [cv2.imencode(kind, picture[:, :, ::-1])[1].tobytes() for kind in (".jpg", ".png")]
    decoding, computing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    async def ask(question: Question) -> Answer | Refused:
        loop = asyncio.get_running_loop()
        try:
            seen = await loop.run_in_executor(decoding, look, model, question, limits)
        except Refused as refused:
            return refused
        return (await loop.run_in_executor(computing, answers, model, [seen]))[0]

    app = make_app([described(model)], limits, "", ask, lambda *told: None)
    memory, parts = psutil.Process().memory_info, 4

    async def asks() -> tuple[Counter[tuple[str, str]], list[int], bool]:
        came, resident = Counter[tuple[str, str]](), []
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=300) as client:
            wanted = (await client.post("/detect", content=forms[1])).content
            for part in range(parts):
                share = range(given.bodies * part // parts, given.bodies * (part + 1) // parts)
                came += await ask_all(client, forms, share)
                resident.append(memory().rss >> 20)
            same = (await client.post("/detect", content=forms[1])).content == wanted
        return came, resident, same

    began = time.perf_counter()
    came, resident, same = asyncio.run(asks())
    kinds = sorted({said for _, said in came})
    rows = [{"damage": way, **{said: came[way, said] for said in kinds}} for way in WAYS]
    whole = Counter[str]()
    for (_, said), times in came.items():
        whole[said] += times
    write(
        given.output,
        rows,
        bodies=sum(came.values()),
        answers=dict(sorted(whole.items())),
        seconds=round(time.perf_counter() - began, 1),
        **{"resident MB, in turn": resident, "the whole picture is answered as before": same},
    )
    if not same or {int(said.split()[0]) for said in whole} - EXPECTED:
        sys.exit("a body was answered with something else than 200, 400, 413 or 415, or spoilt later answers")


if __name__ == "__main__":
    main()
