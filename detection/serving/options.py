"""What `jobs/serve.py` is told, and what a server needs of it. Imports nothing slow."""

import hashlib
import hmac
import os
import re
from pathlib import Path

from pydantic import Field, model_validator

from backbone.errors import UserError
from backbone.options import Strict
from backbone.storage import absolute

TOKEN = "RAYBONE_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST = 16  # characters of a token
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ROOM = "artifact"  # the folder of a run that holds it


class Limits(Strict):
    """What one request may cost. What is beyond is refused with a 4xx that says so."""

    body_mb: float = Field(20, gt=0)
    """Megabytes of a request's body. Beyond: 413."""

    megapixels: float = Field(50, gt=0, le=178)
    """Million pixels of an image, by its header, and of what it is resized to before it is cropped. Beyond: 413."""

    seconds: float = Field(30, gt=0)
    """From a request's first byte to its answer, waiting included. Beyond: 408."""

    waiting: int = Field(256, ge=1)
    """Requests under way in one front, those that wait for a replica included. Beyond: 429."""

    waiting_mb: float = Field(1000, gt=0)
    """Megabytes of bodies under way in one front, at least `body_mb`. Beyond: 429."""

    values: int = Field(4_000_000, ge=1)
    """Numbers of the whole maps that one answer of /features holds. Beyond: 413."""

    @model_validator(mode="after")
    def _possible(self) -> "Limits":
        if self.waiting_mb < self.body_mb:
            raise ValueError(
                f"waiting_mb {self.waiting_mb:g} is below body_mb {self.body_mb:g}: no such body goes in; give "
                f"--limits.waiting_mb {self.body_mb:g}"
            )
        return self


class Serving(Strict):
    """Put detectors and backbones behind HTTP. Serving again under the same name replaces what is served, without a
    lost request."""

    artifact: tuple[str, ...]
    """`name=path`, or a path alone, which is then called as its run is. Folders or URLs that every node sees. Each is
    verified before it takes traffic."""

    name: str = "raybone"
    """Of the application in Ray Serve."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all, and then a token is needed."""

    port: int = Field(8000, ge=1, le=65535)
    """Port to listen at."""

    route: str = "/"
    """Path before all others, where other applications of the same Ray Serve have theirs."""

    token_file: str = ""
    """File with the token that requests must bring (`Authorization: Bearer`). The variable RAYBONE_SERVE_TOKEN says it,
    too. Needed unless `host` is this machine alone."""

    detach: bool = False
    """Return once it is served, on a cluster that stays. Else it ends with this command."""

    batch: int = Field(1, ge=1)
    """Images of the same padded size that go through a net together. 1: the numbers of `detection.detect` to the last
    bit. More is faster on a GPU, and changes the last bits."""

    min_replicas: int = Field(1, ge=1)
    """Replicas that always run, each with every artifact that fits `resident`."""

    max_replicas: int = Field(1, ge=1)
    """Replicas at most; between the two their number follows the requests under way."""

    cpus_per_replica: int = Field(1, ge=1)
    """Cores reserved for a replica, and the threads torch computes with in it."""

    use_gpu: bool = False
    """A GPU for each replica."""

    fronts: int = Field(1, ge=1)
    """Processes that read and check requests and hand them to replicas."""

    resident: int = Field(0, ge=0)
    """Artifacts that a replica keeps in memory; of more, those asked for last. 0: all of them."""

    limits: Limits = Limits()

    @model_validator(mode="after")
    def _possible(self) -> "Serving":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if not self.route.startswith("/") or (self.route != "/" and self.route.endswith("/")):
            raise ValueError(f"route {self.route}: begins with a slash and ends without one: /photos")
        self.named()
        return self

    def named(self) -> dict[str, str]:
        """Name -> absolute path or URL of each artifact.

        Raises:
            ValueError: there is none, a name is given twice, or is none that a URL takes.
        """
        found: dict[str, str] = {}
        for word in self.artifact:
            name, _, url = word.partition("=") if re.match(r"[^/=:]+=", word) else (_called(word), "", word)
            if not url:
                raise ValueError(f"artifact {word}: names no path; give name=path")
            if not NAME.fullmatch(name):
                raise ValueError(f"artifact {word}: {name!r} is no name; give one of letters and digits: photos={url}")
            if name in found:
                raise ValueError(f"artifact: two are called {name}; give them names: one={found[name]} other={url}")
            found[name] = url if "://" in url else absolute(url)  # which would ask a remote one
        if not found:
            raise ValueError("artifact: name at least one")
        return found


def _called(url: str) -> str:
    """`runs/mine/artifact` -> mine."""
    *_, above, last = ["", *url.rstrip("/").split("/")]
    return above if last == ROOM else last


def token_hash(options: Serving) -> str:
    """SHA-256 of the token that requests must bring, which is all that leaves this process; empty: none is needed.

    Raises:
        UserError: one is needed and there is none, or it is too short to keep anybody out.
    """
    token, where = os.environ.get(TOKEN, "").strip(), TOKEN
    if options.token_file:
        where = f"token_file {options.token_file}"
        try:
            token = Path(options.token_file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read: {error}") from error
    if not token and options.token_file:
        raise UserError(f"{where}: is empty; make a token: openssl rand -hex 24 > {options.token_file}")
    if not token and options.host not in LOOPBACK:
        made = f'export {TOKEN}="$(openssl rand -hex 24)"'
        raise UserError(f"host {options.host}: others reach it, so a token is needed: {made}")
    if token and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(f"{where}: a token is {SHORTEST} or more letters, digits and signs without spaces")
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def is_token(header: str, expected: str) -> bool:
    """Whether an `Authorization` header brings the token with this hash."""
    kind, _, token = header.partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return kind.lower() == "bearer" and hmac.compare_digest(given, expected)
