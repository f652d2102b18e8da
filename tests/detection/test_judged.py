"""What `jobs/evaluate.py` takes a command line and its recipe to be about."""

from pathlib import Path

import pytest

from backbone.cli import parse
from detection.judged import together, what
from detection.localisation.options import LocaliserEvaluation
from detection.submission.options import Submission

LOC, DET, NET = "localiser: [a]\nbackbone: [b]\n", "detector: [a]\n", "backbone: [b]\n"


@pytest.mark.parametrize(
    ("words", "recipe", "judged"),
    [
        (["--backbone", "c"], LOC, "--localiser"),
        (["--backbone", "c"], DET, "--detector"),
        (["--backbone", "c"], NET, "--backbone"),
        (["--backbone", "c"], "batch: 4\n", "--backbone"),
        (["--backbone", "c"], "not: [whole", "--backbone"),
        (["--backbone", "c"], None, "--backbone"),
        (["--localiser", "c"], NET, "--localiser"),
        (["--detector", "c"], NET, "--detector"),
        (["--backbone", "c", "--localiser", "d"], None, "--localiser"),
        (["--batch", "4"], LOC, "--localiser"),
        (["--batch", "4"], NET, "--backbone"),
        (["--batch", "4"], "not: [whole", "--detector"),
        ([], None, "--detector"),
    ],
)
def test_what_is_judged(words: list[str], recipe: str | None, judged: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe or "")
    config = ["--config", str(tmp_path / "mine.yaml")] if recipe else []
    assert what([*words, *config]) == what([*config, *words]) == judged


def test_another_backbone_for_a_recipe_of_localisers(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(LOC)
    words = together(["--config", str(tmp_path / "mine.yaml"), "--backbone", "c", "--backbone=d"], "--backbone")
    assert what(words) == "--localiser"
    found, _ = parse(LocaliserEvaluation, words)
    assert (found.localiser, found.backbone) == (("a",), ("c", "d"))


@pytest.mark.parametrize("option", ["backbone", "localiser", "proposals"])
@pytest.mark.parametrize("job", [LocaliserEvaluation, Submission])
def test_what_is_not_taken_together_is_refused(job: type, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(job, [f"--{option}", "a", "--output", "x", f"--{option}", "b"])
    assert ended.value.code == 2
    says = f"error: command line: --{option} is given twice; name all in one: --{option} a b"
    assert says in capsys.readouterr().err.splitlines()
