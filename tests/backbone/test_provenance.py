"""What is recorded of the code that ran: our own, or nothing."""

import subprocess
from pathlib import Path

import pytest

from backbone import provenance


def commit(folder: Path) -> str:
    """A repository of somebody's, with one commit; its hash."""
    words = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*words, "init", "-q"], check=True)
    (folder / "file").write_text("1")
    subprocess.run([*words, "add", "file"], check=True)
    subprocess.run([*words, "commit", "-qm", "first"], check=True)
    return subprocess.run([*words, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_is_that_of_our_own_checkout(tmp_path: Path) -> None:
    revision = commit(tmp_path)
    assert provenance._revision(tmp_path) == revision
    (tmp_path / "file").write_text("2")
    assert provenance._revision(tmp_path) == f"{revision}-dirty"


def test_somebody_elses_repository_around_us_is_not_ours(tmp_path: Path) -> None:
    commit(tmp_path)
    inside = tmp_path / "lib" / "site-packages"
    inside.mkdir(parents=True)
    assert provenance._revision(inside) is None


def test_a_copy_is_told_its_revision_and_a_checkout_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBONE_REVISION", "of the submitter")
    assert provenance._revision(tmp_path) == "of the submitter"
    assert provenance._revision(tmp_path) != commit(tmp_path) == provenance._revision(tmp_path)


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert provenance._revision(tmp_path) is None


def test_the_code_has_a_hash_and_the_hardware_a_name() -> None:
    found = provenance.environment()
    assert len(found["code_sha256"]) == 64
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    if models:
        assert found["hardware"] in models[0] or "cuda" in found["versions"]["torch"]
