"""Files found by names that were written elsewhere, and what is not guessed."""

import unicodedata
from pathlib import Path

import fsspec
import pytest

from backbone.data.findings import Findings
from detection.data.files import MISSING, RESPELLED, SEVERAL, Files, locate


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\a.jpg", "sub/a.jpg"),
        ("train/a.jpg", "a.jpg"),
        ("images/train/sub/a.jpg", "sub/a.jpg"),
        ("/data/set/a.jpg", "a.jpg"),
        ("C:\\Users\\me\\set\\a.jpg", "a.jpg"),
        ("\\\\server\\share\\a.jpg", "a.jpg"),
        ("../images/a.jpg", "a.jpg"),
        ("a.JPG", "a.jpg"),
        ("a.jpg", "a.JPG"),
        ("A.jpg", "a.jpg"),
        ("a.jpg", "a.png"),
        ("a", "a.jpg"),
        ("cam1/0001", "cam1/0001.png"),
        ("a.jpg", "deep/below/a.jpg"),
        ("my%20image.jpg", "my image.jpg"),
        ("%E5%9B%BE.jpg", "图.jpg"),
        (unicodedata.normalize("NFD", "été.jpg"), "été.jpg"),
        (unicodedata.normalize("NFC", "été.jpg"), unicodedata.normalize("NFD", "été.jpg")),
        (unicodedata.normalize("NFD", "Čs\\été.JPG"), "čs/été.jpg"),
        ("v1.2", "v1.2.jpg"),
        ("https://bucket.host/set/my%20image.jpg?X-Signed=a/b.jpg", "my image.jpg"),
        ("/data/local-files/?d=set%5Csub%5Ca.jpg", "sub/a.jpg"),
        ("/data/local-files/?d=a.jpg", "a.jpg"),
        ("100%.jpg", "100%.JPG"),
        ("my image.jpg", "my%20image.jpg"),
        ("sub/my image.jpg", "sub/my%20image.JPG"),
        ("my+image.jpg", "my image.jpg"),
        ("a &amp; b.jpg", "a & b.jpg"),
        (" a.jpg\n", "a.jpg"),
    ],
)
def test_a_name_of_another_layout_is_found_and_said(tmp_path: Path, written: str, there: str) -> None:
    for name in (there, "other.jpg", "sub/else.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    findings = Findings()
    names, lost = locate(str(tmp_path), [written, "other.jpg"], findings)
    (finding,) = findings.sorted()
    assert (finding.what, finding.count, finding.severity) == (RESPELLED, 1, "warning")
    assert finding.examples == [f"{written} is {there}"]
    assert names == [there, "other.jpg"]
    assert lost.tolist() == [False, False]


@pytest.mark.parametrize(
    ("written", "there"),
    [
        (["a.jpg"], ["sub/a.jpg", "other/a.jpg"]),
        (["a"], ["a.jpg", "a.png"]),
        (["x/A.jpg"], ["a.jpg", "a.JPG"]),
        (["one/a.jpg", "two/a.jpg"], ["a.jpg"]),  # two images cannot be one file
        (["a.jpg", "train/a.jpg"], ["a.jpg"]),
    ],
)
def test_a_name_that_fits_several_files_or_the_file_of_another_is_not_guessed(
    tmp_path: Path, written: list[str], there: list[str]
) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    findings = Findings()
    names, lost = locate(str(tmp_path), written, findings)
    (finding,) = findings.sorted()
    assert (finding.what, finding.severity) == (SEVERAL, "error")
    assert finding.count == len(written) - (written[0] in there)
    assert names == written
    assert lost.tolist() == [name not in there for name in written]


def test_names_that_are_there_stay_whatever_else_would_fit(tmp_path: Path) -> None:
    for name in ("a.jpg", "A.jpg", "sub/a.jpg", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    findings = Findings()
    written = ["a.jpg", "A.jpg", "sub/a.jpg", "./a.png"]
    names, lost = locate(str(tmp_path), written, findings)
    assert names == ["a.jpg", "A.jpg", "sub/a.jpg", "a.png"]
    assert not lost.any()
    assert findings.sorted() == []


def test_what_is_missing_is_named_and_hidden_files_and_dead_links_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / ".trash").mkdir()
    for name in ("._b.jpg", ".trash/b.jpg"):
        (tmp_path / name).write_bytes(b"")
    findings = Findings()
    _, lost = locate(str(tmp_path), ["a.jpg", "b.jpg", "dead.jpg"], findings)
    (finding,) = findings.sorted()
    assert (finding.what, finding.severity, finding.examples) == (MISSING, "error", ["b.jpg", "dead.jpg"])
    assert "restore" in finding.remedy
    assert lost.tolist() == [False, True, True]
    findings = Findings()
    locate(str(tmp_path), ["x.jpg", "y.jpg"], findings)
    assert "name the folder they lie in" in findings.sorted()[0].remedy


def test_remote_folders() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("here.jpg", "sub/Below.jpg"):
        memory.pipe_file(f"/located/{name}", b"x")
    findings = Findings()
    names, lost = locate("memory://located", ["here.jpg", "set/sub/below.jpg", "none.jpg"], findings)
    assert names == ["here.jpg", "sub/Below.jpg", "none.jpg"]
    assert lost.tolist() == [False, False, True]


def test_the_closest_fit_goes_first() -> None:
    files = Files(["a.jpg", "sub/a.jpg", "sub/b.png", "c/b.jpg"])
    assert files.find("sub/a.jpg") == ["sub/a.jpg"]
    assert files.find("x/sub/a.jpg") == ["sub/a.jpg"]
    assert files.find("else/a.jpg") == ["a.jpg"]
    assert files.find("b.jpg") == ["c/b.jpg"]  # its own suffix before others
    assert files.find(" sub/a.jpg ") == ["sub/a.jpg"]
    assert files.find("") == files.find("/") == files.find("none") == []


def test_blanks_around_a_files_own_name() -> None:
    files = Files(["a.jpg ", "a.jpg", "b.jpg ", " sub/c.jpg", "sub/d.jpg", "d.jpg"])
    assert files.find("A.jpg ") == ["a.jpg "]
    assert files.find("A.jpg") == ["a.jpg"]
    assert files.find("x/B.jpg ") == ["b.jpg "]
    assert files.find(" Sub/c.jpg") == [" sub/c.jpg"]
    assert files.find(" Sub/d.jpg") == ["sub/d.jpg"]
