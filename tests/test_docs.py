"""A tour of the documents by machine: commands are understood, links lead somewhere, numbers were printed."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

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


NUMBER = re.compile(r"(?<![\w.,-])[-+−]?\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d)")

NOT_MEASURED = {
    "quickstart_gains": {"3.11": "Python's", "7 GB": "du of .venv", "4 min 2 s": "the command's last line"},
    "input_pipeline": {"224": "pixels of the net's input"},
    "real_images_cpu": {"164": "the paper's epochs"},
    "coco_scoring": {"12 numbers": "COCO's", "1e-15": "a bound of the largest difference, 2e-18"},
}
"""Numbers beside a results file that are not measurements in it -> what they are."""


def leaves(tree: Any) -> Iterator[float]:
    """All numbers of a results file, those in texts such as "0.97 to 1.00" too."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(value)
    elif isinstance(tree, str):
        yield from (float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*(?:\.\d+)?", tree))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def printed(number: str, tree: Any) -> bool:
    """Whether a results file has this number, to the digits that are shown; a fraction may be shown as percent."""
    text = number.replace(",", "").replace("−", "-")
    half = 0.5000001 * 10.0 ** -len(text.partition(".")[2])
    return any(
        abs(value - float(text)) <= half for one in leaves(tree) for value in (one, 100 * one, 100 - one, one / 1000)
    )


def claims(text: str) -> Iterator[tuple[str, str]]:
    """The name of each results file that is named, and the words that it is to bear out."""
    for part in re.split(r"\n\n|\n(?=\|)", text):
        flat, before = " ".join(part.split()), 0
        for found in re.finditer(r"docs/results/(\w+)\.json", flat):
            said = flat[before : found.start()]
            yield found[1], said.split("|")[2] if flat.startswith("|") else said
            before = found.end()


CLAIMS = list(claims((ROOT / "README.md").read_text()))


@pytest.mark.parametrize(("file", "said"), CLAIMS, ids=[file for file, _ in CLAIMS])
def test_numbers_of_the_readme_were_printed(file: str, said: str) -> None:
    for text in NOT_MEASURED.get(file, {}):
        said = said.replace(text, "")
    tree = json.loads((ROOT / f"docs/results/{file}.json").read_text())
    missing = [number for number in NUMBER.findall(said) if not printed(number, tree)]
    assert missing == [], f"docs/results/{file}.json does not bear out {missing} of: {said}"


def test_the_quickstarts_table_was_printed() -> None:
    text = (ROOT / "README.md").read_text()
    lines = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| (?:plain|residual)\b", line)]
    rows = [cells for cells in lines if len(cells) == 5]
    report = json.loads((ROOT / "docs/results/quickstart_gains.json").read_text())
    labels = ("plain", "residual", "from-scratch")
    found = {row["label"]: row for row in report["rows"]}
    assert len(rows) == 3
    for cells, label in zip(rows, labels, strict=True):
        row = found[label]
        shown = [NUMBER.findall(cell.replace("–", " ")) for cell in cells[1:]]
        ap, gain = row["AP"], row["gain"].get("AP", {}).get("absolute")
        wanted = [
            [row["pretrain"]["top-1"]] if row["pretrain"] else [],
            [ap["value"], ap["joint"]["low"], ap["joint"]["high"]],
            [row["AP50"]["value"]],
            [gain["value"], gain["joint"]["low"], gain["joint"]["high"]] if gain else [],
        ]
        assert [[float(number) for number in cell] for cell in shown] == [
            [round(100 * value, 1) for value in values] for values in wanted
        ]


def test_the_gain_on_photographs_was_printed() -> None:
    """To the very place in the record: among so many numbers a wrong one may find its like."""
    lines = (ROOT / "README.md").read_text().splitlines()
    text = " ".join(" ".join(lines).split())
    photographs = json.loads((ROOT / "docs/results/photographs_gains.json").read_text())
    on_gpu = photographs["blocks"]["faster"]["rows"]
    on_cpu = json.loads((ROOT / "docs/results/highway_gains.json").read_text())["rows"]

    def shown(estimate: dict[str, Any], to: str, sign: str = "") -> str:
        numbers = estimate["value"], estimate["joint"]["low"], estimate["joint"]["high"]
        value, low, high = (f"{100 * number:{sign}.1f}" for number in numbers)
        return f"{value} ({low}{to}{high})"

    begun = lines.index("| backbone | pretraining, top-1 | VOC mAP | gain |") + 2
    for line, row in zip(lines[begun : begun + len(on_gpu)], on_gpu, strict=True):
        _, top1, measured, gain = (cell.strip() for cell in line.strip("|").split("|"))
        assert measured == shown(row["mAP"], "–")
        assert row["pretrain"] == {} or top1 == f"{100 * row['pretrain']['top-1']:.1f} %"
        assert row["gain"] == {} or gain.startswith(shown(row["gain"]["mAP"]["absolute"], " to ", "+"))
    assert f"gained {shown(on_cpu[1]['gain']['mAP']['absolute'], ' to ', '+')} over the plain one" in text


def test_a_number_that_was_not_printed_is_noticed() -> None:
    tree = json.loads((ROOT / "docs/results/checkpoint_stall.json").read_text())
    assert printed("46", tree)
    assert printed("465", tree)
    assert not printed("49", tree)
    assert not printed("475", tree)
