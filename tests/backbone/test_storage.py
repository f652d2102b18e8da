"""Paths and URLs through one door."""

from pathlib import Path

import pytest

from backbone.errors import UserError
from backbone.storage import filesystem, is_local, join


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("a/b", Path("a/b"), f"file://{tmp_path}/a/b"):
        _, path = filesystem(given)
        assert path == str(tmp_path / "a/b")
        assert is_local(given)
    assert filesystem("~/x")[1] == str(Path.home() / "x")


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
