"""The HTTP side: routes, limits and the token, whoever computes the answers."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from backbone.pages import style
from detection.serving.options import Limits, is_token
from detection.serving.questions import (
    MEGA,
    Answer,
    Question,
    Refused,
    check_image,
    too_large,
    too_long,
    too_many,
    too_much,
)

GONE = 499  # as proxies count it: who asked has hung up, and nobody reads the answer
Ask = Callable[[Question], Awaitable[Answer | Refused]]
Observe = Callable[[str, str, int, float], None]
"""Is told the route, the model, the status and the seconds of every request."""

# Pages ask nobody but this server, and run no script but their own.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)
BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png")},
    }
}


class Size(BaseModel):
    """Of the image, EXIF orientation applied; boxes are in its pixels."""

    height: int
    width: int


class Found(BaseModel):
    """Of D detections, the best first."""

    model: str
    sha256: str
    image: Size
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    names: list[str]
    scores: list[float]
    masks: list[dict[str, Any]] | None = None


class Classified(BaseModel):
    """The likeliest classes; labels count from 0, scores are softmax probabilities."""

    model: str
    sha256: str
    image: Size
    labels: list[int]
    names: list[str]
    scores: list[float]


class Features(BaseModel):
    """Stage -> the mean of its map, one number a channel."""

    model: str
    sha256: str
    image: Size
    features: dict[str, list[float]]


class Served(BaseModel):
    """What is served, and its limits."""

    models: list[dict[str, Any]]
    limits: dict[str, Any]


class Fault(BaseModel):
    """Why a request was not answered: a word for programs and a sentence for people."""

    error: dict[str, str]


FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "damaged image; the model does not do that, or has no such stage"},
    401: {"model": Fault, "description": "no token, or another one"},
    404: {"model": Fault, "description": "no such model"},
    408: {"model": Fault, "description": "not answered in time"},
    413: {"model": Fault, "description": "too large a body, too many pixels, or too many values asked for"},
    415: {"model": Fault, "description": "neither JPEG nor PNG"},
    422: {"model": Fault, "description": "a parameter is not what it must be"},
    429: {"model": Fault, "description": "too many requests are waiting; Retry-After says when to try again"},
    500: {"model": Fault, "description": "a fault of the server's; its log says more"},
    503: {"model": Fault, "description": "no replica could answer; Retry-After says when to try again"},
}


def make_app(models: Sequence[Mapping[str, Any]], limits: Limits, token: str, ask: Ask, observe: Observe) -> FastAPI:
    """The application.

    Args:
        models: what `models.described` says of each.
        limits: beyond which requests are refused.
        token: SHA-256 of the token that requests must bring; empty: none.
        ask: computes the answer to a question.
        observe: is told of every request that was asked.
    """
    app = FastAPI(title="raybone", description=ABOUT, version="1", docs_url=None, redoc_url=None)
    by_name = {model["name"]: model for model in models}
    under_way = held = 0

    def allowed(request: Request) -> None:
        if token and not is_token(request.headers.get("authorization", ""), token):
            raise Refused(401, "no_token", "this server wants a token: Authorization: Bearer TOKEN")

    guard = [Depends(allowed)]

    def model_for(task: str, name: str | None) -> str:
        """Refused (404) where there is none."""
        able = [one["name"] for one in models if task in one["tasks"]]
        if name is not None and name not in by_name:
            raise Refused(404, "unknown_model", f"no model is called {name[:80]!r}; there are {', '.join(by_name)}")
        if name is None and not able:
            raise Refused(404, "unknown_model", f"nothing served here does {task}; /models says what is")
        return name or able[0]

    async def answered(request: Request, task: Any, name: str | None, **more: Any) -> Response:
        """Read the image and ask; every request ends here in a response, within the limits."""
        nonlocal under_way, held
        began, status, model, size = time.perf_counter(), 500, "", 0
        under_way += 1

        def hold(more: int) -> None:
            nonlocal held, size
            if held + more > limits.waiting_mb * MEGA:
                raise too_much(limits)
            held, size = held + more, size + more

        try:
            if under_way > limits.waiting:  # before its body is read
                raise too_many(limits)
            model = model_for(task, name)
            async with asyncio.timeout(limits.seconds):
                data = await body_of(request, limits, hold)
                check_image(data, limits)
                answer = await ask(Question(model, task, data, **more))
            if isinstance(answer, Refused):
                raise answer
            status = 200
            return Response(answer.body, media_type=answer.media)
        except TimeoutError:
            status = 408
            return refusal(too_long(limits))
        except Refused as refused:
            status = refused.status
            return refusal(refused)
        except ClientDisconnect:
            status = GONE
            return Response(status_code=GONE)
        except asyncio.CancelledError:  # Serve takes back what its client does not wait for
            status = GONE
            raise
        finally:
            under_way, held = under_way - 1, held - size
            observe(task, model, status, time.perf_counter() - began)

    @app.post(
        "/detect",
        response_model=Found,
        openapi_extra=BODY,
        dependencies=guard,
        responses=FAULTS,
    )
    async def detect(
        request: Request,
        model: Annotated[str | None, Query(description="of /models; else the first detector")] = None,
        min_score: Annotated[float, Query(ge=0, le=1, description="detections score at least this")] = 0.0,
    ) -> Response:
        """What is in a picture, and where.

        Boxes are x1 y1 x2 y2 in pixels of the picture, labels count from 1, masks are COCO's compressed RLE. The
        numbers are those of `detection.detect`.
        """
        return await answered(request, "detect", model, min_score=min_score)

    @app.post("/classify", response_model=Classified, openapi_extra=BODY, dependencies=guard, responses=FAULTS)
    async def classify(
        request: Request,
        model: Annotated[str | None, Query(description="of /models; else the first backbone")] = None,
        top: Annotated[int, Query(ge=1, le=1000, description="classes to name")] = 5,
    ) -> Response:
        """What a picture shows: softmax of the backbone's own head on the central crop, as `1-crop` evaluation does."""
        return await answered(request, "classify", model, top=top)

    @app.post("/features", response_model=Features, openapi_extra=BODY, dependencies=guard, responses=FAULTS)
    async def features(
        request: Request,
        model: Annotated[str | None, Query(description="of /models; else the first backbone")] = None,
        stages: Annotated[str, Query(description="such as C4,C5; else the last one")] = "",
        pooled: Annotated[bool, Query(description="the mean of each map; else the maps, as safetensors")] = True,
    ) -> Response:
        """The maps of named stages of the central crop: their means as JSON, or whole, float32 [C, H, W] each."""
        wanted = tuple(dict.fromkeys(filter(None, re.split(r"[,\s]+", stages))))
        return await answered(request, "features", model, stages=wanted, pooled=pooled)

    @app.get("/models", response_model=Served, dependencies=guard, responses=FAULTS)
    async def served() -> Response:
        """What is served: names, classes, stages, the weights' hashes, and the limits."""
        return JSONResponse({"models": [dict(model) for model in models], "limits": limits.model_dump()})

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return page("start.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(Refused(422, "bad_parameter", f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        said = f"{error.detail}: {request.method} {request.url.path[:80]}; /docs says what there is"
        return refusal(Refused(error.status_code, "no_such_route", said))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        """It is raised again after the response, and logged by who runs this application."""
        return refusal(Refused(500, "server_fault", "the server failed to answer; its log says more"))

    return app


ABOUT = """Pictures in, boxes, classes or features out. The body of a request is the bytes of a JPEG or PNG.

curl --data-binary @photo.jpg -H "Authorization: Bearer $RAYBONE_SERVE_TOKEN" http://HOST:PORT/detect"""


def refusal(refused: Refused) -> JSONResponse:
    """A refusal as a response; it closes the connection where the body was not read to its end."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
    return JSONResponse(refused.body(), refused.status, headers.get(refused.status))


async def body_of(request: Request, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """The body, of which no more is kept than the limit. `hold` is told of bytes before they are, and may refuse them.

    Raises:
        Refused: 413, by its Content-Length or when it has become too large.
    """
    most, length = limits.body_mb * MEGA, request.headers.get("content-length", "")
    room = int(length) if length.isdecimal() else 0
    if room > most:
        raise too_large(limits)
    hold(room)
    parts, count = [], 0
    async for part in request.stream():
        count += len(part)
        if count > most:
            raise too_large(limits)
        if count > room:
            hold(count - room)
            room = count
        parts.append(part)
    return b"".join(parts)


def page(name: str) -> HTMLResponse:
    """A page that asks nothing of the network but this server."""
    text = files("detection.serving").joinpath(name).read_text("utf-8").replace("$style", style())
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})
