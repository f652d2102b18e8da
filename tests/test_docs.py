"""A tour of the documents by machine: commands are understood, links lead somewhere."""

import re
import shlex

import pytest

from backbone.cli import parse
from backbone.pruning import Listing
from backbone.training.compare import Comparison
from detection.judged import what
from tests.test_readme import JUDGED, MODELS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
JOBS = {**MODELS, "curves": Comparison, "list": Listing}


def blocks(text: str) -> list[str]:
    """The lines of its shell blocks, continued ones joined."""
    found = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in found for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in blocks((ROOT / name).read_text()):
        words = [word.rstrip(";") for word in shlex.split(line, comments=True)]
        if job := re.search(r"(?:python jobs/(\w+)\.py|raybone (\w+))(?: |$)", line):
            kind = job[1] or job[2]
            assert (ROOT / f"jobs/{kind}.py").exists(), line
            at = next(i for i, word in enumerate(words) if word in (f"jobs/{kind}.py", kind))
            understood(kind, words[at + 1 :])
        elif script := re.search(r"python (benchmarks/\w+\.py)", line):
            source = (ROOT / script[1]).read_text()
            for other in re.findall(r"^from (\w+) import", source, re.MULTILINE):  # it has their options, too
                beside = ROOT / f"benchmarks/{other}.py"
                source += beside.read_text() if beside.exists() else ""
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{script[1]} has no {option}: {line}"


LOOPS = {
    "$seed": "0",
    "resnet110-$seed": "resnet110-0",
    "jobs/recipes/cifar10/$net.yaml": "jobs/recipes/cifar10/resnet20.yaml",
    "$net": "net",
}
"""What variables of loops stand for once."""


def understood(job: str, words: list[str]) -> None:
    """What the job's model takes; where the recipe is made by another command of the page, its options alone."""
    if job == "dashboard" or "..." in words:
        return
    words = words[: words.index("&&")] if "&&" in words else words
    if job == "list" and words[0][0] != "-":  # its storage goes without a name
        words = ["--storage", *words]
    if "--rates" in words:
        del words[words.index("--rates") : words.index("--rates") + 2]
    given = words[words.index("--config") + 1] if "--config" in words else ""
    model = JUDGED[what(words)] if job == "evaluate" else JOBS[job]
    if given and given.startswith("runs/"):  # a sweep's best, a run's own
        return
    parse(model, [LOOPS.get(word, word) for word in words], {"dry_run": "", "json": "", "yes": ""})


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:docs|jobs|benchmarks|tests|backbone|detection)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{name}: {path}"


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
