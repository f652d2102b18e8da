"""Checkpoints in an object store: whole or not at all, whatever happens to the network, the listing or the writer."""

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any
from urllib.parse import parse_qsl

import pytest
import torch

from backbone.errors import StorageLost
from backbone.storage import names_in
from backbone.training.pretrain import PRETRAIN
from backbone.training.state import Checkpointer, Progress, Store
from tests.backbone.training.test_state import state
from tests.conftest import ROOT
from tests.object_store import Bucket

WRITER = """
import sys, torch
from backbone import s3
from backbone.training.state import Progress, Store
s3.PART = 5 << 20
Store(sys.argv[1]).save(8, {"model": torch.zeros(3_000_000), "progress": Progress(step=8).as_dict()}, {})
"""


def test_checkpoints_survive_faults(s3: Bucket) -> None:
    store = Store(f"{s3.url}/checkpoints")
    s3.proxy.rule = s3.proxy.faults(seed=0, share=0.1)
    for step in (1, 2, 3):
        store.save(step, state(step), {})
    store.prune(keep=2, best_step=-1)
    assert store.steps() == [2, 3]
    newest = store.newest(print)
    assert newest is not None
    assert torch.equal(newest["model"]["conv1.weight"], torch.full((4, 3), 3.0))


def test_an_upload_that_is_killed_is_no_checkpoint_and_is_told(s3: Bucket) -> None:
    url = f"{s3.url}/checkpoints"
    store = Store(url)
    store.save(4, state(4), {})
    s3.proxy.rule = lambda method, path: "stall" if "partNumber=2" in path else ""
    environment = {**os.environ, **s3.environment}
    with subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=ROOT, env=environment) as writer:
        while not any("partNumber=2" in path for _, path in s3.proxy.asked):
            assert writer.poll() is None
            time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    s3.proxy.rule = lambda method, path: ""
    pending = store.fs.call_s3("list_multipart_uploads", Bucket=s3.name)
    assert len(pending["Uploads"]) == 1

    said: list[str] = []
    store.clear_unfinished(said.append)
    newest = store.newest(said.append)
    assert newest is not None
    assert newest["progress"]["step"] == 4
    assert said == ["checkpoint step-00000008 was not written to its end; going on from the one before"]
    assert not store.fs.call_s3("list_multipart_uploads", Bucket=s3.name).get("Uploads")


def test_all_pages_of_uploads_are_given_up(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 lists 1,000 on a page; here one, which the server cannot: its answer is cut into pages."""
    store = Store(f"{s3.url}/checkpoints")
    store.save(4, state(4), {})
    for step in (8, 12, 16):
        store.fs.call_s3("create_multipart_upload", Bucket=s3.name, Key=f"checkpoints/step-{step:08d}/state.pt")
    pass_on = s3.proxy._ask
    pages = 0

    def one_a_page(to: Any, body: bytes) -> Any:
        nonlocal pages
        status, headers, answer = pass_on(to, body)
        if "?uploads" not in to.path or to.command != "GET":
            return status, headers, answer
        pages += 1
        asked = dict(parse_qsl(to.path.partition("?")[2]))
        after = (asked.get("key-marker", ""), asked.get("upload-id-marker", ""))
        found = {_tags(one): one for one in re.findall(rb"<Upload>.*?</Upload>", answer, re.DOTALL)}
        (mark, one), *more = sorted((mark, one) for mark, one in found.items() if mark > after)
        page = b"<IsTruncated>%s</IsTruncated>" % (b"true" if more else b"false")
        page += b"<NextKeyMarker>%s</NextKeyMarker><NextUploadIdMarker>%s</NextUploadIdMarker>" % (
            mark[0].encode(),
            mark[1].encode(),
        )
        page = b"<ListMultipartUploadsResult>" + page + one + b"</ListMultipartUploadsResult>"
        return 200, [("Content-Type", "application/xml")], page

    with monkeypatch.context() as patched:
        patched.setattr(s3.proxy, "_ask", one_a_page)
        said: list[str] = []
        store.clear_unfinished(said.append)
    assert [line.split()[1] for line in said] == [f"step-{step:08d}" for step in (8, 12, 16)]
    assert pages == 3
    assert not store.fs.call_s3("list_multipart_uploads", Bucket=s3.name).get("Uploads")


def _tags(upload: bytes) -> tuple[str, str]:
    key, number = (re.search(rb"<%s>(.*?)</" % name, upload) for name in (b"Key", b"UploadId"))
    assert key
    assert number
    return key[1].decode(), number[1].decode()


def test_a_state_without_its_manifest_is_no_checkpoint_and_is_told(s3: Bucket) -> None:
    store = Store(f"{s3.url}/checkpoints")
    for step in (4, 8):
        store.save(step, state(step), {})
    store.fs.rm_file(f"{store.path}/step-00000008/manifest.json")
    said: list[str] = []
    store.clear_unfinished(said.append)
    assert store.steps() == [4]
    assert said == ["checkpoint step-00000008 was not written to its end; going on from the one before"]
    assert names_in(store.url) == {"step-00000004"}


def test_a_store_that_fails_is_told_and_what_was_saved_stays(s3: Bucket) -> None:
    store = Store(f"{s3.url}/checkpoints")
    store.save(4, state(4), {})
    checkpointer = Checkpointer(store, keep=2)
    s3.proxy.rule = lambda method, path: "503 SlowDown" if method == "PUT" else ""
    checkpointer.hold(state(8), Progress(step=8), {})
    checkpointer.commit()
    with pytest.raises(StorageLost, match=r"cannot write checkpoint .*step-00000008 .*goes on from the checkpoint"):
        checkpointer.wait()
    s3.proxy.rule = lambda method, path: ""
    assert store.steps() == [4]


def test_a_store_that_fails_is_no_damaged_checkpoint(s3: Bucket) -> None:
    """To fall back to an older one would throw steps away."""
    store = Store(f"{s3.url}/checkpoints")
    for step in (4, 8):
        store.save(step, state(step), {})
    s3.proxy.rule = lambda method, path: "503 SlowDown" if "step-00000008/state.pt" in path else ""
    with pytest.raises(StorageLost):
        store.newest(print)


def test_a_run_over_faults_and_stale_listings_ends_in_the_same_weights(s3: Bucket, tiny, tmp_path) -> None:
    from backbone.artifact import read_config
    from backbone.job import submit

    short = {"schedule.total": 12, "run.checkpoint_every": 3}
    here = submit(PRETRAIN, tiny(short))
    s3.proxy.rule = s3.proxy.faults(seed=1, share=0.05)
    recipe = tiny({**short, "run.storage": f"{s3.url}/runs"})
    stopped = False

    def stop_once(record: dict) -> None:
        nonlocal stopped
        if record["kind"] == "log" and record["step"] >= 9 and not stopped:
            stopped = True
            raise InterruptedError("a worker is taken away")

    s3.proxy.stale = {}
    with pytest.raises(InterruptedError):
        submit(PRETRAIN, recipe, watch=stop_once)
    there = submit(PRETRAIN, recipe)  # what it lists may be as old as the first listing
    ours, theirs = (read_config(outcome.artifact)["raybone"]["weights_sha256"] for outcome in (here, there))
    assert ours == theirs
