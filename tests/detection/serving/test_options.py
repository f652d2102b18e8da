"""What is served under which name, and who may ask."""

from pathlib import Path

import pytest

from backbone.cli import validate
from backbone.errors import UserError
from detection.serving.options import Serving, is_token, token_hash

TOKEN = "a-token-of-thirty-two-characters"


def test_artifacts_are_called_as_their_runs_or_as_told() -> None:
    told = Serving(artifact=("/runs/mine/artifact", "boxes=/runs/a/artifact", "s3://bucket/runs/net/"))
    assert told.named() == {"mine": "/runs/mine/artifact", "boxes": "/runs/a/artifact", "net": "s3://bucket/runs/net/"}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"artifact": []}, "name at least one"),
        ({"artifact": ["a/mine/artifact", "b/mine/artifact"]}, "two are called mine; give them names: one="),
        ({"artifact": ["boxes="]}, "names no path"),
        ({"artifact": ["a b=/x"]}, "'a b' is no name"),
        ({"artifact": ["/x"], "min_replicas": 3}, "max_replicas 1 is below min_replicas 3"),
        ({"artifact": ["/x"], "route": "photos"}, "begins with a slash"),
        ({"artifact": ["/x"], "limits": {"megapixels": 1000}}, "limits.megapixels"),
        ({"artifact": ["/x"], "limits": {"body_mb": 2000}}, "below body_mb 2000: .*; give --limits.waiting_mb 2000"),
    ],
)
def test_mistakes_are_named(tree: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        validate(Serving, tree, "serve.yaml")


def test_a_token_is_needed_where_others_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYBONE_SERVE_TOKEN", raising=False)
    assert token_hash(Serving(artifact=("/x",))) == ""
    for host in ("0.0.0.0", "10.1.2.3", "::"):
        with pytest.raises(UserError, match="a token is needed: export RAYBONE_SERVE_TOKEN="):
            token_hash(Serving(artifact=("/x",), host=host))
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot be read"):
        token_hash(Serving(artifact=("/x",), token_file=str(file)))
    file.write_text("short\n")
    with pytest.raises(UserError, match="16 or more"):
        token_hash(Serving(artifact=("/x",), token_file=str(file)))
    file.write_text(f"{TOKEN}\n")
    of_file = token_hash(Serving(artifact=("/x",), token_file=str(file), host="0.0.0.0"))
    monkeypatch.setenv("RAYBONE_SERVE_TOKEN", TOKEN)
    assert of_file == token_hash(Serving(artifact=("/x",), host="0.0.0.0"))
    assert TOKEN not in of_file  # which is all that leaves the process
    assert is_token(f"Bearer {TOKEN}", of_file)
    assert is_token(f"bearer  {TOKEN}", of_file)
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", f"Bearer {of_file}", "Bearer \udcff"):
        assert not is_token(wrong, of_file), wrong
