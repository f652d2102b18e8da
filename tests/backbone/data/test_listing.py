"""Which files a location means."""

import pytest

from backbone.data.listing import expand_braces, list_files, pattern_of
from backbone.data.sources import open_source
from backbone.errors import UserError
from tests.backbone.data.making import (
    make_shards,
    make_tar,
    samples,
    values,
)


def test_missing_shards_are_named(tmp_path):
    root = make_shards(tmp_path / "data")
    with pytest.raises(UserError, match=r"there is no .*set-train-000002\.tar"):
        open_source("webdataset", f"{root}/set-train-{{000000..000003}}.tar")
    with pytest.raises(UserError, match=r"there is no .*test-\*\.tar"):
        open_source("webdataset", f"{root}/test-*.tar")
    with pytest.raises(UserError, match="no such file or directory"):
        open_source("webdataset", f"{root}/nothing.tar")
    with pytest.raises(UserError, match=r"no \*\.parquet in this directory"):
        open_source("parquet", str(root))


def test_braces_expand_as_in_a_shell():
    assert list(expand_braces("a{08..11}b")) == ["a08b", "a09b", "a10b", "a11b"]
    assert list(expand_braces("{1..3}")) == ["1", "2", "3"]
    assert list(expand_braces("{a,b}{0..1}.tar")) == ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]
    assert list(expand_braces("plain.tar")) == ["plain.tar"]
    assert list(expand_braces("{00..08..4}{x..z}")) == [f"{n}{c}" for n in ("00", "04", "08") for c in "xyz"]
    assert list(expand_braces("{A..C}{a..C}")) == ["Aa..C", "Ba..C", "Ca..C"]


def test_shards_in_several_directories(tmp_path):
    make_tar(tmp_path / "data" / "a" / "0.tar", samples(range(3)))
    make_tar(tmp_path / "data" / "b" / "0.tar", samples(range(3, 6)))
    source = open_source("webdataset", f"{tmp_path}/data/*/0.tar")
    assert values(source) == list(range(6))
    assert source.name(3) == f"{tmp_path}/data/b/0.tar:n0/img_3.png"


def test_query_of_an_object_store_goes_to_the_file_system(monkeypatch):
    asked = []

    def filesystem(url):
        asked.append(url)
        raise UserError("stop")

    monkeypatch.setattr("backbone.data.listing.filesystem", filesystem)
    with pytest.raises(UserError, match="stop"):
        list_files("s3://bucket/dir/x-{0..9}.tar?endpoint_override=localhost:9000", ".tar")
    assert asked == ["s3://bucket/dir?endpoint_override=localhost:9000"]


def test_braces_are_bounded(tmp_path):
    with pytest.raises(UserError, match="stand for more than 1000000 files"):
        open_source("webdataset", f"{tmp_path}/{{0..99999999999}}.tar")
    with pytest.raises(UserError, match="stand for nothing; count upwards"):
        open_source("webdataset", f"{tmp_path}/{{5..3}}.tar")


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_what_stands_behind_a_question_mark_is_no_pattern(scheme: str) -> None:
    assert pattern_of(f"{scheme}://bucket/shards?region=eu-central-1") == ""
    assert pattern_of(f"{scheme}://bucket/*.tar?region=eu-central-1") == "*.tar"


def test_places_joined_as_elsewhere_are_refused_with_braces(tmp_path):
    """fsspec takes `a::b` for a file system in another, and would read `a` alone."""
    for folder in "ab":
        make_tar(tmp_path / folder / "0.tar", samples(range(3)))
    for mark in ("::", ",", ", "):
        with pytest.raises(UserError, match="no such file or directory") as caught:
            open_source("webdataset", f"{tmp_path}/a/0.tar{mark}{tmp_path}/b/0.tar")
        assert str(caught.value).endswith(f"named by braces: '{tmp_path}/{{a/0.tar,b/0.tar}}'")
    assert len(open_source("webdataset", f"{tmp_path}/{{a/0.tar,b/0.tar}}")) == 6
    with pytest.raises(UserError, match="no such directory"):
        open_source("imagefolder", f"{tmp_path}/a::{tmp_path}/b")


def test_shards_that_lack_of_a_series_are_said(tmp_path):
    for number in (0, 2):
        make_tar(tmp_path / f"s-{number:02d}-of-04.tar", samples(range(3 * number, 3 * number + 3)))

    def said(location):
        return [one.as_line() for one in open_source("webdataset", location).findings if "series" in one.what]

    assert said(str(tmp_path)) == said(f"{tmp_path}/*.tar")
    assert said(str(tmp_path))[0].startswith(f"2 files of a series that are not there ({tmp_path}/s-01-of-04.tar")
    assert said(f"{tmp_path}/s-{{00,02}}-of-04.tar") == []


def test_shards_further_down_are_pointed_at(tmp_path):
    make_tar(tmp_path / "set" / "default" / "train" / "0.tar", samples(range(3)))
    with pytest.raises(
        UserError, match=r"it holds the folders default, and no \*\.tar in them: name one further down$"
    ):
        open_source("webdataset", str(tmp_path / "set"))
