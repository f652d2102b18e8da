"""An S3 server in a process of its own, and a proxy before it that does what networks and stores do on bad days."""

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message></Error>"

Rule = Callable[[str, str], str]
"""(method, path with query) -> what goes wrong: "" nothing, "cut" before the request, "lost" after it, "half" of
its answer's body, "slow", "stall" for ever, or an error's status and code as "503 SlowDown"."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def moto() -> Iterator[str]:
    """The server's URL."""
    port = free_port()
    words = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


class Proxy:
    """Passes requests on to a server, but for those that `rule` has another fate for; keeps what was asked."""

    def __init__(self, server: str) -> None:
        self.behave()
        self._server = server.removeprefix("http://")
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # whoever asked is gone
                    self.close_connection = True

            def do(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def behave(self) -> None:
        """From now on, and forget what was."""
        self.rule: Rule = lambda method, path: ""
        self.asked: list[tuple[str, str]] = []
        self.together, self.most = 0, 0  # requests under way, now and at most
        self.stale: dict[str, tuple[int, list[tuple[str, str]], bytes]] | None = None
        """Listings as they were first seen, if a dict."""

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def faults(self, seed: int, share: float, kinds: tuple[str, ...] = ("cut", "half", "503 SlowDown")) -> Rule:
        """So many of all requests go wrong, by a sequence of their own."""
        chance = random.Random(seed)

        def rule(method: str, path: str) -> str:
            with self._lock:
                return chance.choice(kinds) if chance.random() < share else ""

        return rule

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = self._body(to)
        method, path = to.command, to.path
        with self._lock:
            self.asked.append((method, path))
            self.together += 1
            self.most = max(self.most, self.together)
        try:
            fault = self.rule(method, path)
            if fault == "stall":
                threading.Event().wait(600)
            if fault == "slow":
                time.sleep(0.1)
            if fault == "lost":
                self._ask(to, body)
            if fault in ("cut", "lost"):
                to.close_connection = True
                to.connection.shutdown(socket.SHUT_RDWR)
            elif fault[:1].isdigit():
                status, code = fault.split()
                self._send(to, int(status), [], ERROR % (code.encode(), b"injected"))
            else:
                self._send(to, *self._ask(to, body), half=fault == "half")
        finally:
            with self._lock:
                self.together -= 1

    def _body(self, to: BaseHTTPRequestHandler) -> bytes:
        if to.headers.get("Transfer-Encoding") != "chunked":
            return to.rfile.read(int(to.headers.get("Content-Length") or 0))
        parts = []
        while size := int(to.rfile.readline().split(b";")[0], 16):
            parts.append(to.rfile.read(size))
            to.rfile.readline()
        while to.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, to: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        key = to.path
        if self.stale is not None and "list-type=2" in key and key in self.stale:
            return self.stale[key]
        server = http.client.HTTPConnection(self._server, timeout=120)
        hop = ("transfer-encoding", "content-length", "connection", "expect")
        headers = {name: value for name, value in to.headers.items() if name.lower() not in hop}
        server.request(to.command, to.path, body, {**headers, "Content-Length": str(len(body))})
        response = server.getresponse()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in ("connection", "date")]
        found = response.status, kept, response.read()
        server.close()
        if self.stale is not None and "list-type=2" in key:
            self.stale[key] = found
        return found

    def _send(self, to: BaseHTTPRequestHandler, status: int, headers: list, body: bytes, half: bool = False) -> None:
        to.send_response(status)
        said = [(name, value) for name, value in headers if name.lower() not in ("server", "transfer-encoding")]
        if not any(name.lower() == "content-length" for name, _ in said):
            said.append(("Content-Length", str(len(body))))
        for name, value in said:
            to.send_header(name, value)
        to.end_headers()
        if half and len(body) > 1:
            to.wfile.write(body[: len(body) // 2])
            to.close_connection = True
            to.connection.shutdown(socket.SHUT_RDWR)
        elif to.command != "HEAD":
            to.wfile.write(body)


@dataclass
class Bucket:
    """Where a test may write."""

    url: str
    """s3://NAME"""

    proxy: Proxy

    @property
    def name(self) -> str:
        return self.url.removeprefix("s3://")

    @property
    def environment(self) -> dict[str, str]:
        """What another process finds the proxy by."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.proxy.url}
