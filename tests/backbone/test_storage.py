"""Paths and URLs through one door."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from backbone.errors import UserError
from backbone.storage import filesystem, is_local, join, replace_file
from tests.conftest import ROOT


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("a/b", Path("a/b"), f"file://{tmp_path}/a/b"):
        _, path = filesystem(given)
        assert path == str(tmp_path / "a/b")
        assert is_local(given)
    assert filesystem("~/x")[1] == str(Path.home() / "x")
    assert filesystem("/a::b")[1] == "/a::b"  # no file system in another


def test_remote_urls() -> None:
    fs, path = filesystem("memory://bucket/key")
    fs.pipe_file(path, b"x")
    assert fs.cat_file(join(path)) == b"x"
    assert not is_local("memory://bucket/key")
    # pyarrow's, with no further package; with its region given it need not ask the network
    assert filesystem("s3://bucket/key?region=us-east-1")[1] == "bucket/key"


@pytest.mark.parametrize("url", ["nothing://x", "abfs://"])
def test_what_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(UserError, match=f"cannot open {url}"):
        filesystem(url)


def test_join() -> None:
    assert join("s3://b/k/", "x", "y") == "s3://b/k/x/y"
    assert join("s3://b/k?region=eu-west-1", "x") == "s3://b/k/x?region=eu-west-1"
    assert join("/what?/is", "x") == "/what?/is/x"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_file_is_replaced_whole(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its writer gets no further than half."""
    url = str(tmp_path / "file") if kind == "local" else "memory://replaced/file"
    fs, path = filesystem(url)
    for data in (b"first", b"2"):
        replace_file(url, data)
        assert fs.cat_file(path) == data
    if kind == "local":
        write = Path.write_bytes

        def half(self: Path, data: bytes) -> int:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="full"):
            replace_file(url, b"third")
        assert fs.cat_file(path) == b"2"
        assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_mark_is_whole_or_not_there(tmp_path: Path) -> None:
    """As a disk that fills up would leave it: no file may be longer than 16 bytes."""
    script = f"""
import resource, signal
from backbone.storage import write_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
write_folder({str(tmp_path / "a")!r}, {{"weights": b"1", "config.json": b"x" * 64}}, "artifact")
"""
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "UserError: cannot write artifact" in done.stderr
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["weights"]
