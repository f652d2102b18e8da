"""Every command and snippet of the README is one that works."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbone.artifact import save
from backbone.cli import parse
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return [text.replace("\\\n", " ") for text in re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)]


def test_the_first_two_blocks_are_the_main_job_and_the_tests() -> None:
    main, tests = blocks("bash")
    assert main.splitlines()[0] == tests.splitlines()[0], "each block sets up by itself"
    assert tests.splitlines()[1] == ".venv/bin/pytest"
    assert tests.splitlines()[1] in (ROOT / ".ci/run").read_text()


def test_every_pretraining_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [line for block in blocks("bash") + blocks("sh") for line in block.splitlines() if "pretrain.py" in line]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command.split("jobs/pretrain.py", 1)[1])
        parse(Recipe, words, {"dry_run": ""})


def test_the_dry_run_of_the_readme(run_job: Callable[..., subprocess.CompletedProcess]) -> None:
    command = next(line for block in blocks("sh") for line in block.splitlines() if "--dry-run" in line)
    done = run_job("pretrain", *shlex.split(command.split("jobs/pretrain.py", 1)[1]))
    assert done.returncode == 0, done.stderr
    assert "resnet34, 12 classes" in done.stdout


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use, in_timm = blocks("python")
    quickstart = NetOptions(depth=18, width=0.5)
    about = {"metrics": {"val_error": 30.0}}
    save(
        tmp_path / "runs/quickstart/artifact",
        build(quickstart, 12),
        InputConvention(size=64),
        tuple("abcdefghijkl"),
        about,
    )
    save(tmp_path / "runs/my-resnet50/artifact", build(NetOptions(), 3), InputConvention(), ("a", "b", "c"), about)
    monkeypatch.chdir(tmp_path)
    names: dict = {"images": torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)}
    exec(use, names)
    assert list(names["maps"]) == ["C2", "C3", "C4", "C5"]
    assert names["logits"].shape == (2, 12)
    assert names["net"].stages["C2"].channels == 32  # as the comment says
    exec("import timm\nnet = " + in_timm, names)
    assert names["net"].num_classes == 3


def test_files_it_names_exist() -> None:
    for name in re.findall(r"(?:docs|jobs)/[\w./-]+\.(?:md|png|py|yaml)", README):
        assert (ROOT / name).exists(), name
