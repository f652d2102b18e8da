"""Objects of S3, over a proxy that cuts, refuses and forgets, before a server that is no stub of ours."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import Lost, StorageError, StorageLost, UserError
from backbone.job import submit
from backbone.lease import lease
from backbone.storage import filesystem, names_in
from backbone.training.pretrain import PRETRAIN
from tests.conftest import ROOT
from tests.object_store import Bucket, free_port


def test_bytes_come_back_whole_and_in_ranges(s3: Bucket) -> None:
    fs, path = filesystem(f"{s3.url}/a")
    data = os.urandom(1000)
    fs.pipe_file(f"{path}/b", data)
    assert fs.cat_file(f"{path}/b") == data
    assert fs.cat_file(f"{path}/b", 10, 20) == data[10:20]
    assert names_in(f"{s3.url}/a") == {"b"}
    assert names_in(f"{s3.url}/nothing") == set()


def test_large_objects_go_in_parts(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbone.s3.PART", 5 << 20)  # the least that S3 takes
    fs, path = filesystem(f"{s3.url}/large")
    data = os.urandom(1 << 20) * 12
    fs.pipe_file(path, data)
    assert sum("partNumber=" in asked for _, asked in s3.proxy.asked) == 3
    assert fs.cat_file(path) == data


def test_an_upload_whose_last_answer_was_lost_has_ended(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is tried again, and stores unlike moto do not know the upload any more."""
    monkeypatch.setattr("backbone.s3.PART", 5 << 20)
    fs, path = filesystem(f"{s3.url}/large")
    data = os.urandom(1 << 20) * 11
    ends: list[str] = []

    def lost_once(method: str, asked: str) -> str:
        if method == "POST" and "uploadId=" in asked:
            ends.append(asked)
            return "lost" if len(ends) == 1 else "404 NoSuchUpload"
        return ""

    s3.proxy.rule = lost_once
    fs.pipe_file(path, data)
    assert len(ends) == 2
    assert fs.cat_file(path) == data


def test_an_upload_that_others_gave_up_has_not_ended(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older object of the same name must not speak for it."""
    monkeypatch.setattr("backbone.s3.PART", 5 << 20)
    fs, path = filesystem(f"{s3.url}/deep/large")
    before = os.urandom(1 << 20) * 11
    fs.pipe_file(path, before)

    def give_up(method: str, asked: str) -> str:
        if method == "POST" and "uploadId=" in asked:
            return "404 NoSuchUpload"
        return ""

    s3.proxy.rule = give_up
    with pytest.raises(StorageError, match="NoSuchUpload"):
        fs.pipe_file(path, before[::-1])
    assert fs.cat_file(path) == before


def test_what_may_not_be_overwritten_is_not(s3: Bucket, tmp_path: Path) -> None:
    fs, path = filesystem(f"{s3.url}/once")
    (tmp_path / "file").write_bytes(b"3")
    fs.pipe_file(path, b"1", mode="create")
    with pytest.raises(OSError, match="PreconditionFailed"):
        fs.pipe_file(path, b"2", mode="create")
    with pytest.raises(OSError, match="PreconditionFailed"):
        fs.put_file(str(tmp_path / "file"), path, mode="create")
    assert fs.cat_file(path) == b"1"


REFUSED = (
    b"<?xml version='1.0'?><DeleteResult>"
    b"<Error><Key>d/b</Key><Code>%s</Code><Message>no</Message></Error></DeleteResult>"
)


@pytest.mark.parametrize(("code", "kind", "tries"), [(b"AccessDenied", StorageError, 1), (b"InternalError", Lost, 3)])
def test_what_is_not_removed_is_told(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, code: bytes, kind: type, tries: int
) -> None:
    """The answer to many is 200 and names those it refuses."""
    fs, path = filesystem(f"{s3.url}/d")
    for name in "abc":
        fs.pipe_file(f"{path}/{name}", b"1")
    pass_on = s3.proxy._ask
    answered: list[str] = []

    def refuse(to: Any, body: bytes) -> Any:
        if to.command == "POST" and "delete" in to.path:
            answered.append(to.path)
            return 200, [("Content-Type", "application/xml")], REFUSED % code
        return pass_on(to, body)

    monkeypatch.setattr(s3.proxy, "_ask", refuse)
    with pytest.raises(kind, match=rf"s3://{s3.name}/d/b: .*") as caught:
        fs.rm(path, recursive=True)
    assert isinstance(caught.value, StorageError)
    assert len(answered) == tries


def test_what_others_write_is_seen_at_once(s3: Bucket) -> None:
    fs, path = filesystem(f"{s3.url}/shared")
    fs.pipe_file(f"{path}/one", b"1")
    assert names_in(f"{s3.url}/shared") == {"one"}
    words = f"from backbone.storage import filesystem as f; f('{s3.url}')[0].pipe_file('{path}/two', b'2')"
    subprocess.run([sys.executable, "-c", words], cwd=ROOT, env={**os.environ, **s3.environment}, check=True)
    assert names_in(f"{s3.url}/shared") == {"one", "two"}
    assert fs.exists(f"{path}/two")


def test_faults_that_pass_are_not_seen(s3: Bucket) -> None:
    fs, path = filesystem(f"{s3.url}/faults")
    s3.proxy.rule = s3.proxy.faults(seed=3, share=0.1)
    for number in range(12):
        fs.pipe_file(f"{path}/{number}", bytes([number]) * 5000)
    assert [fs.cat_file(f"{path}/{number}") for number in range(12)] == [bytes([n]) * 5000 for n in range(12)]
    assert names_in(f"{s3.url}/faults") == {str(number) for number in range(12)}


@pytest.mark.parametrize("fault", ["503 SlowDown", "cut", "half"])
def test_faults_that_last_are_named_after_limited_patience(s3: Bucket, fault: str) -> None:
    fs, path = filesystem(f"{s3.url}/x")
    fs.pipe_file(path, b"12345678")
    before = len(s3.proxy.asked)
    s3.proxy.rule = lambda method, asked: fault
    with pytest.raises(StorageLost, match=f"^{s3.url}/x: the object store .* submit the same again") as caught:
        fs.cat_file(path)
    assert len(s3.proxy.asked) - before <= 8  # of ours or of s3fs: this many, with pauses, is what patience is
    assert isinstance(caught.value, OSError | Lost)  # a job exits with "submitted again it goes on"
    assert "\n" not in str(caught.value)


def test_a_store_that_is_not_there(s3: Bucket, monkeypatch: pytest.MonkeyPatch, new_s3_client) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    new_s3_client()
    fs, path = filesystem(f"{s3.url}/x")
    with pytest.raises(StorageLost, match=f"{nowhere}.*AWS_ENDPOINT_URL"):
        fs.cat_file(path)


ANSWERS = {
    "403 InvalidAccessKeyId": "credentials are refused.*AWS_ACCESS_KEY_ID",
    "403 SignatureDoesNotMatch": "credentials are refused.*AWS_SECRET_ACCESS_KEY",
    "400 ExpiredToken": "credentials are refused.*AWS_SESSION_TOKEN",
    "403 AccessDenied": "not allowed.*s3:PutObject",
    "400 AuthorizationHeaderMalformed": "another region.*AWS_REGION",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_refusals_are_told_in_one_line_before_anything_is_trained(s3: Bucket, tiny, answer: str) -> None:
    s3.proxy.rule = lambda method, path: answer
    with pytest.raises(UserError, match=f"{s3.url}/runs.*{ANSWERS[answer]}") as caught:
        submit(PRETRAIN, tiny({"run.storage": f"{s3.url}/runs"}))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, Lost)
    assert len(s3.proxy.asked) < 5


def test_a_missing_bucket_is_named_and_not_made(s3: Bucket, tiny) -> None:
    missing = f"{s3.name}-mistyped"
    with pytest.raises(UserError, match=f"no bucket {missing}; make it"):
        submit(PRETRAIN, tiny({"run.storage": f"s3://{missing}/runs"}))
    fs, path = filesystem(f"s3://{missing}/a/b")
    fs.makedirs(path, exist_ok=True)
    assert missing not in fs.ls("")


def test_no_credentials(s3: Bucket, tiny, tmp_path, monkeypatch: pytest.MonkeyPatch, new_s3_client) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    new_s3_client()
    with pytest.raises(UserError, match=r"no credentials.*set AWS_ACCESS_KEY_ID.*on every node"):
        submit(PRETRAIN, tiny({"run.storage": f"{s3.url}/runs"}))


def test_region_and_endpoint_may_stand_in_the_url(s3: Bucket, monkeypatch: pytest.MonkeyPatch, new_s3_client) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    new_s3_client()
    place = s3.proxy.url.removeprefix("http://")
    fs, path = filesystem(f"{s3.url}/x?region=us-east-1&scheme=http&endpoint_override={place}")
    fs.pipe_file(path, b"1")
    assert fs.cat_file(f"{s3.name}/x") == b"1"
    with pytest.raises(UserError, match="there is no regoin"):
        filesystem(f"{s3.url}/x?regoin=us-east-1")


@pytest.mark.parametrize(("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_is_named_with_its_extra(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch, new_s3_client
) -> None:
    for name in (package, "backbone.s3"):
        monkeypatch.setitem(sys.modules, name, None)
    new_s3_client()
    says = rf"cannot open {scheme}://bucket/x.*uv sync --inexact --extra {extra}, or pip install '{package}"
    with pytest.raises(UserError, match=says):
        filesystem(f"{scheme}://bucket/x")


def test_a_lease_is_held_on_an_object_store(s3: Bucket) -> None:
    with (
        lease(f"{s3.url}/runs/one"),
        pytest.raises(UserError, match="is being trained by pid"),
        lease(f"{s3.url}/runs/one"),
    ):
        pass
    with lease(f"{s3.url}/runs/one"):  # it was given back
        assert names_in(f"{s3.url}/runs/one") == {"lease.json"}


def test_errors_of_stores_travel_between_processes() -> None:
    import pickle

    one = pickle.loads(pickle.dumps(StorageLost("s3://b/x: gone")))
    assert type(one) is StorageLost
    assert str(one) == "s3://b/x: gone"
    assert isinstance(one, StorageError | OSError | UserError | Lost)
