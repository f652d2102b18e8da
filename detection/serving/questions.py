"""What a request asks, what it is answered, and what is refused before a pixel is decoded."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from backbone.data.decode import TooManyPixels, size_of
from backbone.data.formats import HEAD, what_is
from backbone.data.headers import JPEG_START, PNG_START
from backbone.errors import BadImage
from detection.serving.options import Limits

READ = ("JPEG", "MPO", "PNG")  # PIL's names; MPO is what cameras call several JPEGs in one file
IMAGE = "image"  # what a picture that came without a name is called in messages
MEGA = 1_000_000

Task = Literal["detect", "classify", "features"]


@dataclass(frozen=True)
class Question:
    """An image and what is to be said of it."""

    model: str
    task: Task
    data: bytes
    """A JPEG or PNG."""
    min_score: float = 0.0
    """Of detections."""
    top: int = 5
    """Classes of a classification, the likeliest first."""
    stages: tuple[str, ...] = ()
    """Of features, such as C4; () is the last one."""
    pooled: bool = True
    """The mean of each map, and not the map."""


@dataclass(frozen=True)
class Answer:
    """The body of a response and what it is."""

    body: bytes
    media: str = "application/json"


class Refused(Exception):
    """A request that is not answered: HTTP status, a word for programs, a sentence for people.

    Given back as a value by replicas, since Ray wraps what is raised.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


def as_json(tree: Any) -> Answer:
    return Answer(json.dumps(tree, separators=(",", ":")).encode())


def check_image(data: bytes, limits: Limits) -> None:
    """Refuse what is no JPEG or PNG, or has too many pixels, by its header alone.

    Raises:
        Refused: 400 without a body or with a damaged header, 413 for too many pixels, 415 for anything else.
    """
    if not data:
        raise Refused(400, "no_image", "the body is empty; send the bytes of a JPEG or PNG")
    if not data.startswith((JPEG_START, PNG_START)):
        known = what_is(data[:HEAD]).partition(";")[0]
        raise Refused(415, "not_an_image", f"only JPEG and PNG are read; the body {known or 'is something else'}")
    try:
        height, width = size_of(data, IMAGE, READ)
    except TooManyPixels as error:
        raise Refused(413, "too_many_pixels", str(error)) from error
    except BadImage as error:
        raise Refused(400, "damaged_image", str(error)) from error
    check_pixels(height, width, limits)


def check_pixels(height: int, width: int, limits: Limits, what: str = "the image has") -> None:
    """Refused (413) where they are more than the limit."""
    if height * width > limits.megapixels * MEGA:
        raise Refused(
            413, "too_many_pixels", f"{what} {width}x{height} pixels; at most {limits.megapixels:g} million are read"
        )


def too_large(limits: Limits) -> Refused:
    """What is said of a body that is too large."""
    return Refused(413, "body_too_large", f"the body is larger than {limits.body_mb:g} MB")


def too_long(limits: Limits) -> Refused:
    """What is said when a request's time is over."""
    return Refused(408, "too_long", f"not answered within {limits.seconds:g} s; send it again, or a smaller image")


def too_many(limits: Limits) -> Refused:
    """What is said when more requests wait than may."""
    return Refused(429, "too_many_requests", f"{limits.waiting:,} requests are under way; try again")


def too_much(limits: Limits) -> Refused:
    """What is said when the bodies under way are larger together than they may be."""
    return Refused(429, "too_many_bytes", f"{limits.waiting_mb:g} MB of images are under way; try again")
