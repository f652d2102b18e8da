"""On Ray: several artifacts behind one address, a replica that dies, artifacts replaced under load."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import detection
from backbone.errors import UserError
from detection.serving.options import Serving
from tests.detection.serving.conftest import picture, write_detector
from tests.detection.serving.test_app import check_same, png


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def ask(url: str, data: bytes | None = None) -> dict[str, Any]:
    """The JSON of an answer; HTTPError where it is a refusal."""
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as answer:
        return json.loads(answer.read())


@contextmanager
def under_load(url: str, data: bytes) -> Iterator[list[dict[str, Any] | Exception]]:
    """Four clients that ask one after the other meanwhile, and what each got."""
    found: list[dict[str, Any] | Exception] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                found.append(ask(url, data))
            except Exception as error:  # the test looks at them
                found.append(error)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            yield found
        finally:
            over.set()
        for one in clients:
            one.result()


@pytest.mark.ray
def test_served_killed_and_replaced(ray_cluster: Any, artifacts: dict[str, str], tmp_path: Path) -> None:
    from ray import serve

    from detection.serving.run import start

    port, image = free_port(), picture(64, 96)
    url = f"http://127.0.0.1:{port}/tried"
    named = tuple(f"{name}={folder}" for name, folder in artifacts.items())
    name = f"tried-{port}"  # replicas are found by it
    options = Serving(artifact=named, name=name, port=port, route="/tried", resident=1)
    said: list[str] = []
    try:
        end = start(options, said.append)
        assert f"serving   {url}/ (no token is needed from this machine)" in said
        wanted = detection.detect(detection.load(artifacts["masks"]), [image])[0]
        check_same(ask(f"{url}/detect", png(image)), wanted)
        for _ in range(2):  # of two artifacts one is kept in memory: each is loaded, and verified, again
            assert len(ask(f"{url}/classify?top=3", png(image))["labels"]) == 3
            check_same(ask(f"{url}/detect", png(image)), wanted)
        assert [one["name"] for one in ask(f"{url}/models")["models"]] == ["masks", "net"]

        with under_load(f"{url}/detect", png(image)) as found:
            until(lambda: len(found) > 8)
            (pid,) = replicas(name)
            os.kill(pid, signal.SIGKILL)
            before = len(found)
            until(lambda: len(found) > before + 20)
        assert [one for one in found if isinstance(one, Exception)] == []

        other = write_detector(tmp_path / "other/artifact", seed=1)
        replaced = options.model_copy(update={"artifact": (f"masks={other}", named[1])})
        damaged = Path(write_detector(tmp_path / "damaged/artifact", seed=2))
        weights = bytearray((damaged / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (damaged / "model.safetensors").write_bytes(weights)
        with pytest.raises(UserError, match="SHA-256 is not the one"):
            start(options.model_copy(update={"artifact": (f"masks={damaged}",)}), said.append)
        with under_load(f"{url}/detect", png(image)) as found:
            end_new = start(replaced, said.append)
            before = len(found)
            until(lambda: len(found) > before + 8)
        assert [one for one in found if isinstance(one, Exception)] == []
        new = detection.detect(detection.load(other), [image])[0]
        assert not np.array_equal(new["scores"], wanted["scores"])
        check_same(ask(f"{url}/detect", png(image)), new)
        with pytest.raises(
            UserError, match=r"min_replicas 99: .* room for \d+ replicas of 1 CPU; give a lower --min_r"
        ):
            start(options.model_copy(update={"min_replicas": 99, "max_replicas": 99}), said.append)
        with pytest.raises(UserError, match=r"listens at 127\.0\.0\.1:\d+, not at 127\.0\.0\.1:1"):
            start(options.model_copy(update={"port": 1}), said.append)
        end()  # of the job that was replaced
        check_same(ask(f"{url}/detect", png(image)), new)
        end_new()
        assert name not in serve.status().applications
    finally:
        serve.shutdown()


CLAIMS = """
import time

from backbone.cluster import connect
from detection.serving.claims import Claims
from detection.serving.run import Words

connect(print)
Claims(Words(), "in turn").claim("deploys")
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.mark.ray
def test_a_job_ends_while_another_replaces_it_and_that_one_fails(joined: dict[str, str], tmp_path: Path) -> None:
    """The first leaves what it served, for the second is there; the second takes it down, for nobody else is. Nobody
    waits for one that was killed before while it deployed."""
    from ray import serve

    from detection.serving.claims import Claims, must_wait
    from detection.serving.run import Words, start

    first, second = (write_detector(tmp_path / name / "artifact", seed) for seed, name in enumerate(("one", "two")))
    other = Path(write_detector(tmp_path / "other/artifact", seed=2))
    options = Serving(artifact=(f"masks={first}",), name="in turn", port=free_port())
    told: list[dict[str, Any] | str] = []
    claims = Claims(Words(), options.name)
    with subprocess.Popen([sys.executable, "-c", CLAIMS], env=os.environ | joined, stdout=subprocess.PIPE) as killed:
        try:
            assert killed.stdout is not None
            assert b"claimed\n" in iter(killed.stdout.readline, b"")
            assert claims.states() == {1: "deploys"}
            assert must_wait(claims.states(), 2)
        finally:
            killed.kill()
    until(lambda: claims.states() == {1: "failed"})

    def exchange(line: str) -> None:
        """The second's artifact is another one when its replicas read it, and they refuse it."""
        if line.startswith("verified"):
            for file in other.iterdir():
                (Path(second) / file.name).write_bytes(file.read_bytes())

    def end_first() -> None:
        until(lambda: claims.states().get(3) == "deploys")
        end()
        told.append(ask(f"http://127.0.0.1:{options.port}/detect", png(picture(64, 96))))

    try:
        end = start(options, told.append)
        assert not [line for line in told if "waiting" in line]
        told.clear()
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(end_first)
            with pytest.raises(UserError, match="in turn: Ray Serve does not take it"):
                start(options.model_copy(update={"artifact": (f"masks={second}",)}), exchange)
            ended.result()
        (answer,) = told
        check_same(answer, detection.detect(detection.load(first), [picture(64, 96)])[0])  # ty: ignore[invalid-argument-type]
        assert options.name not in serve.status().applications
        assert list(claims.states().values()) == ["failed", "left", "failed", "ended"]
    finally:
        serve.shutdown()


def test_a_configuration_file_gives_the_jobs_options_and_always_wants_a_token(
    artifacts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection.serving.run import application

    args = {"artifact": [f"{name}={folder}" for name, folder in artifacts.items()], "max_replicas": 2}
    with pytest.raises(UserError, match=r"host 0\.0\.0\.0: others reach it, so a token is needed"):
        application(args)
    monkeypatch.setenv("RAYBONE_SERVE_TOKEN", "a-token-of-thirty-two-characters")
    application(args)
    with pytest.raises(UserError, match="replica_count"):
        application({**args, "replica_count": 2})


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_an_address_that_is_taken_is_told_of_either_family(host: str, family: socket.AddressFamily) -> None:
    from detection.serving.run import check_free

    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: .*in use.*; give another --port\. .* ray start --head"):
            check_free(host, port)
    check_free(host, port)


def replicas(name: str) -> list[int]:
    """Process ids of an application's replicas that hold artifacts."""
    title = f":ServeReplica:{name}:replica"
    found = psutil.process_iter(["cmdline"])
    return [one.pid for one in found if title in (one.info["cmdline"] or [""])[0]]


def until(reached: Any) -> None:
    for _ in range(1200):
        if reached():
            return
        time.sleep(0.1)
    raise AssertionError("waited for two minutes")
