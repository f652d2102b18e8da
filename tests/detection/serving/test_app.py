"""Requests and responses without Ray: the numbers, the limits, the token, and damaged bodies."""

import asyncio
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import load as load_tensors

import backbone
import detection
from backbone.data.augment import evaluation_view
from backbone.errors import UserError
from detection.serving.models import Model, load
from detection.serving.options import Limits
from tests.detection.serving.conftest import Server, picture, write_detector

SIZES = ((64, 96), (80, 80), (200, 70), (33, 47))


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def run(server: Server, asks: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with server.client() as client:
            return await asks(client)

    return asyncio.run(main())


def post(server: Server, path: str, data: bytes, **more: Any) -> httpx.Response:
    return run(server, lambda client: client.post(path, content=data, **more))


def fault(response: httpx.Response) -> tuple[int, str]:
    said = response.json()["error"]
    assert len(said["message"]) > 10
    return response.status_code, said["code"]


def check_same(told: dict[str, Any], wanted: dict[str, Any]) -> None:
    """To the last bit."""
    np.testing.assert_array_equal(np.array(told["boxes"], np.float32).reshape(-1, 4), wanted["boxes"])
    np.testing.assert_array_equal(np.array(told["scores"], np.float32), wanted["scores"])
    assert told["labels"] == wanted["labels"].tolist()
    assert told["masks"] == wanted["masks"]


def test_the_numbers_are_those_of_detect_however_many_ask_at_once(
    models: dict[str, Model], artifacts: dict[str, str]
) -> None:
    images = [picture(*SIZES[k % len(SIZES)], seed=k) for k in range(8)]
    loaded = detection.load(artifacts["masks"])
    wanted = detection.detect(loaded, images)

    async def asks(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/detect", content=png(image)) for image in images))

    for response, image, one in zip(run(Server(models, Limits()), asks), images, wanted, strict=True):
        told = response.json()
        check_same(told, one)
        assert len(told["boxes"]) > 0
        assert (told["image"]["height"], told["image"]["width"]) == image.shape[:2]
        assert told["names"] == [loaded.categories.names[label - 1] for label in told["labels"]]
        assert rle.decode(told["masks"])[..., 0].shape == image.shape[:2]


def test_together_they_differ_in_the_last_bits_alone(models: dict[str, Model]) -> None:
    """What `--batch` is told to do: same padded sides go through the net together."""
    images = [picture(64, 90, seed=k) for k in range(5)] + [picture(64, 64, seed=9)]

    async def asks(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/features?stages=C3", content=png(image)) for image in images))

    alone, together = Server(models, Limits()), Server(models, Limits(), batch=4)
    found = [[one.json()["features"]["C3"] for one in run(server, asks)] for server in (alone, together)]
    assert max(alone.sizes) == 1
    assert max(together.sizes) > 1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_exif_orientation_is_applied(models: dict[str, Model]) -> None:
    upright = picture(64, 96)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6  # to be turned clockwise to be seen upright
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(file, "PNG", exif=exif)
    told = post(Server(models, Limits()), "/detect", file.getvalue()).json()
    assert told["image"] == {"height": 64, "width": 96}
    check_same(told, detection.detect(models["masks"].loaded, [upright])[0])  # ty: ignore[invalid-argument-type]


def test_least_score(models: dict[str, Model]) -> None:
    data = png(picture(64, 96))
    server = Server(models, Limits())
    every = post(server, "/detect", data).json()["scores"]
    least = every[1]
    assert post(server, "/detect", data, params={"min_score": least}).json()["scores"] == every[:2]
    assert fault(post(server, "/detect?min_score=2", data)) == (422, "bad_parameter")


def test_classes_and_features_are_the_nets(models: dict[str, Model], artifacts: dict[str, str]) -> None:
    image = picture(100, 150)
    net, inputs, about = backbone.load(artifacts["net"])
    view = torch.from_numpy(evaluation_view(image, inputs.size, inputs.crop_pct).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        maps = net(inputs.normalize(view))
        scores = net.classify(inputs.normalize(view)).softmax(1)[0]
    server = Server(models, Limits())
    told = post(server, "/classify?top=2", png(image)).json()
    best, labels = scores.topk(2)
    assert (told["scores"], told["labels"]) == (best.tolist(), labels.tolist())
    assert told["names"] == [about["classes"][label] for label in told["labels"]]
    pooled = post(server, "/features?stages=C5,C3", png(image)).json()["features"]
    assert pooled == {name: maps[name][0].mean((1, 2)).tolist() for name in ("C3", "C5")}
    assert list(post(server, "/features", png(image)).json()["features"]) == ["C5"]
    whole = load_tensors(post(server, "/features?stages=C2,C4&pooled=false", png(image)).content)
    assert {name: torch.equal(level, maps[name][0]) for name, level in whole.items()} == {"C2": True, "C4": True}
    assert fault(post(server, "/features?stages=C9", png(image))) == (400, "unknown_stage")
    few = Server(models, Limits(values=100))
    assert fault(post(few, "/features?pooled=false&stages=C2", png(image))) == (413, "too_many_values")


def test_models_and_pages(models: dict[str, Model]) -> None:
    server = Server(models, Limits())

    async def asks(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path) for path in ("/models", "/", "/docs", "/openapi.json", "/nothing")]

    told, start, docs, schema, nothing = run(server, asks)
    one, other = told.json()["models"]
    assert (one["name"], one["kind"], one["masks"], one["classes"]) == (
        "masks",
        "detector",
        True,
        ["blue", "red", "green"],
    )
    assert (other["name"], other["tasks"]) == ("net", ["classify", "features"])
    assert other["stages"]["C4"]["stride"] == 16
    for page in (start, docs):
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
        assert "$style" not in page.text
    assert set(schema.json()["paths"]) == {"/detect", "/classify", "/features", "/models"}
    assert "image/png" in schema.json()["paths"]["/detect"]["post"]["requestBody"]["content"]
    assert fault(nothing) == (404, "no_such_route")


def test_a_model_must_be_there_and_of_the_kind(models: dict[str, Model]) -> None:
    server, data = Server(models, Limits()), png(picture(64, 64))
    assert fault(post(server, "/detect?model=other", data)) == (404, "unknown_model")
    assert fault(post(server, "/detect?model=net", data)) == (400, "wrong_model")
    alone = Server({"net": models["net"]}, Limits())
    assert fault(post(alone, "/detect", data)) == (404, "unknown_model")
    assert server.told == [("detect", "", 404), ("detect", "net", 400)]  # names that others make up are no label


def test_without_the_token_nothing_is_told(models: dict[str, Model]) -> None:
    import hashlib

    token = "a-token-of-thirty-two-characters"
    server = Server(models, Limits(), hashlib.sha256(token.encode()).hexdigest())
    data = png(picture(64, 64))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
        response = post(server, "/detect", data, headers=headers)
        assert fault(response) == (401, "no_token")
        assert response.headers["www-authenticate"] == "Bearer"
        assert fault(run(server, lambda client, h=headers: client.get("/models", headers=h))) == (401, "no_token")
    assert server.told == []
    assert post(server, "/detect", data, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_too_large_a_body_is_refused_before_it_is_read(models: dict[str, Model]) -> None:
    server, read = Server(models, Limits(body_mb=0.01)), []

    async def chunks() -> AsyncIterator[bytes]:  # without a Content-Length
        for _ in range(100):
            read.append(1)
            yield b"\xff\xd8\xff" + bytes(1000)

    assert fault(post(server, "/detect", bytes(10_001))) == (413, "body_too_large")
    response = run(server, lambda client: client.post("/detect", content=chunks()))
    assert fault(response) == (413, "body_too_large")
    assert len(read) <= 11  # of a hundred: those that fit, and the one that does not
    assert fault(post(server, "/detect", bytes(9_999))) == (415, "not_an_image")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and would hold them: zeros compress well."""
    raw = zlib.compress(bytes((1 + width * 3) * min(height, 50)), 9)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", raw), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_too_many_pixels_are_refused_by_the_header(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("decoded")

    server = Server(models, Limits(megapixels=0.01))
    monkeypatch.setattr("detection.serving.models.decode", never)
    for data in (bomb(20_000, 20_000), png(picture(101, 100)), cv2.imencode(".jpg", picture(101, 100))[1].tobytes()):
        assert fault(post(server, "/detect", data)) == (413, "too_many_pixels")


def test_a_thin_image_is_not_blown_up_to_be_cropped(models: dict[str, Model]) -> None:
    server, thin = Server(models, Limits(megapixels=1)), png(picture(1, 20_000))
    assert fault(post(server, "/classify", thin)) == (413, "too_many_pixels")
    assert post(server, "/detect", thin).status_code == 200  # whose longer side is bounded


def test_time_is_limited_while_reading_and_while_waiting(models: dict[str, Model]) -> None:
    server = Server(models, Limits(seconds=0.2))

    async def slow() -> AsyncIterator[bytes]:
        yield b"\x89PNG"
        await asyncio.sleep(5)
        yield b""

    assert fault(run(server, lambda client: client.post("/detect", content=slow()))) == (408, "too_long")

    async def never(question: Any) -> Any:
        await asyncio.sleep(5)

    server.ask = never
    assert fault(post(server, "/detect", png(picture(64, 64)))) == (408, "too_long")


def test_more_at_a_time_than_may_wait_are_refused_and_none_later(models: dict[str, Model]) -> None:
    server, read = Server(models, Limits(waiting=2)), []
    image = png(picture(64, 64))

    async def asks(client: httpx.AsyncClient) -> list[httpx.Response]:
        go = asyncio.Event()

        async def body(number: int) -> AsyncIterator[bytes]:
            read.append(number)
            await go.wait()
            yield image

        first = [asyncio.create_task(client.post("/detect", content=body(number))) for number in range(2)]
        async with asyncio.timeout(60):
            while len(read) < 2:
                await asyncio.sleep(0.01)
        refused = await client.post("/detect", content=body(2))
        go.set()
        return [refused, *await asyncio.gather(*first), await client.post("/detect", content=image)]

    refused, *answered = run(server, asks)
    assert fault(refused) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert read == [0, 1]  # the third body was not read
    assert [one.status_code for one in answered] == [200, 200, 200]


def test_bodies_are_bounded_together_and_room_comes_back(models: dict[str, Model]) -> None:
    server, image, read = Server(models, Limits(body_mb=0.02, waiting_mb=0.03)), png(picture(64, 64)), []
    assert len(image) < 10_000

    async def asks(client: httpx.AsyncClient) -> list[httpx.Response]:
        go = asyncio.Event()

        async def body(size: int, start: bytes) -> AsyncIterator[bytes]:
            read.append(size)
            yield start
            yield bytes(size - len(start))
            await go.wait()

        async def one(size: int, start: bytes, **headers: str) -> httpx.Response:
            return await client.post("/detect", content=body(size, start), headers=headers)

        said = asyncio.create_task(one(19_000, image, **{"content-length": "19000"}))  # counts before it is there
        async with asyncio.timeout(60):
            while not read:
                await asyncio.sleep(0.01)
        refused = [await one(12_000, image, **{"content-length": "12000"}), await one(12_000, image)]
        small = await client.post("/detect", content=image)
        go.set()
        return [*refused, small, await said, await client.post("/detect", content=image + bytes(10_000))]

    said, unsaid, *answered = run(server, asks)
    assert fault(said) == fault(unsaid) == (429, "too_many_bytes")
    assert read == [19_000, 12_000]  # of what said how large it is nothing was read
    assert [one.status_code for one in answered] == [200, 200, 200]


def test_a_fault_of_the_servers_is_told_as_every_other(models: dict[str, Model]) -> None:
    server = Server(models, Limits())

    async def fails(question: Any) -> Any:
        raise ZeroDivisionError("a secret of the server's")

    server.ask = fails
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)

    async def asks() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/detect", content=png(picture(64, 64)))

    response = asyncio.run(asks())
    assert fault(response) == (500, "server_fault")
    assert "secret" not in response.text
    assert server.told == [("detect", "masks", 500)]
    with pytest.raises(ZeroDivisionError):  # and whoever runs it still learns of it
        post(server, "/detect", png(picture(64, 64)))


def test_damaged_bodies_are_answered_with_a_4xx(models: dict[str, Model]) -> None:
    server, draw = Server(models, Limits(megapixels=4)), np.random.default_rng(0)
    image = picture(64, 96)
    forms = [png(image), cv2.imencode(".jpg", image)[1].tobytes()]

    async def asks(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        found = []
        for k in range(60):
            data = bytearray(forms[k % 2])
            for place in draw.integers(0, len(data) if k % 3 else 40, 4).tolist():
                data[place] = int(draw.integers(256))
            body = bytes(data)[: int(draw.integers(1, len(data)))] if k % 5 == 0 else bytes(data)
            response = await client.post("/detect", content=body)
            tree = json.loads(response.content)
            found.append((response.status_code, tree.get("error", {}).get("code", "")))
        return found

    found = run(server, asks)
    assert {status for status, _ in found} <= {200, 400, 413, 415}
    assert sum(code == "damaged_image" for _, code in found) > 8
    assert fault(post(server, "/detect", b"")) == (400, "no_image")
    assert fault(post(server, "/detect", b"GIF89a" + bytes(50))) == (415, "not_an_image")
    assert post(server, "/detect", png(image)).status_code == 200


def test_a_detector_that_finds_no_boxes_is_not_served(tmp_path: Path) -> None:
    semantic = {"kind": "semantic", "norm": "frozen", "freeze_at": 1, "channels": 16, "head_channels": 64}
    url = write_detector(tmp_path / "pixels/artifact", detector=semantic)
    with pytest.raises(UserError, match="pixels/artifact: a detector of kind semantic finds no boxes"):
        load("pixels", url)


def test_who_hangs_up_is_no_fault_of_the_server(models: dict[str, Model]) -> None:
    server = Server(models, Limits())
    came = iter([{"type": "http.request", "body": b"\xff\xd8", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        """Nobody is there to hear it."""

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/detect"}
    scope |= {"raw_path": b"/detect", "root_path": "", "scheme": "http", "query_string": b"", "headers": []}
    asyncio.run(server.app(scope | {"client": ("here", 1), "server": ("here", 80)}, receive, send))
    assert [status for _, _, status in server.told] == [499]
