"""Numbers of the documents stand in the results files named beside them; pictures stand beside what made them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import ROOT

PAGES = ["README.md", "benchmarks/README.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
NUMBER = re.compile(r"(?<![\w.,-])[-+−]?\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d)")
FILE = re.compile(r"(?<![\w])(?:docs/)?results/([\w/]+)\.json")
BESIDE = re.compile(r"[\s`,;()\]]*(?:and )?(?:\[[\w.]+\]\()?")
"""What stands between files that bear out the same words."""

NOT_MEASURED = {
    "README.md": {
        "quickstart_time": {"3.11": "Python's", "7 GB": "du of .venv"},
        "input_pipeline": {"224": "pixels of the net's input"},
        "real_images_cpu": {"164": "the paper's epochs"},
        "coco_scoring": {"12 numbers": "COCO's", "1e-15": "a bound of the largest difference, 2e-18"},
    },
    "benchmarks/README.md": {"submit_processes": {"port 8265": "the dashboard's, Ray's default"}},
    "docs/data.md": {"decode_fuzz": {"178,956,970": "PIL's limit of pixels"}},
    "docs/detection.md": {
        "alternating": {"32 in place of 16": "epochs: both halves of the four steps, 16 each, trained jointly"},
        "detection_steps": {
            "Table 9": "the paper's",
            "+1.5 / +2.7": "the paper's gains",
            "+1.2 / +0.1": "the paper's gains",
            "+2.7 / +2.5": "the paper's gains",
            "+3.3 / +2.5": "the paper's gains",
            "IoU 0.5": "an option's value",
            "1.04 to 1.06": "rows of quickstart_entry and photographs_entry, one over the one before",
        },
    },
    "docs/gpu.md": {
        "gpu_training": {"1.1": "the goal"},
        "gpu_paths": {"24 trainings": "rows of Mask R-CNN in photographs_gains, as photographs.md lists them"},
    },
    "docs/input.md": {
        "loading_stages_before": {"26 and 28": "loads: host.load_1min of this file and of loading_stages"},
        "input_augmentation": {
            "341 x 256": "pixels that a view is cut from, of the benchmark's images",
            "42 16 9": "cores, which a test of their own derives",
        },
        "remote_loading": {"224 pixels": "the net's input"},
        "gpu_training": {"224 pixels": "the net's input"},
    },
    "docs/localisation.md": {"quickstart_localiser": {"34 layers": "the net's depth"}},
    "docs/scale.md": {"cost_model": {"16 times": "32 ranks over two"}},
    "docs/serving.md": {"damaged_bodies": {"200, 400 and 415": "HTTP's; the file has them as names"}},
    "docs/training.md": {"plateau": {"34 layers": "the net's depth", "12 classes": "of the rendered scenes"}},
}
"""Page -> results file -> numbers beside it that are not measurements in it -> what they are."""

DERIVED = {
    "docs/gpu.md": {"0.98": "4598 / 4677", "1.45": "4696 / 3249", "51.2": "50.16 ~ 52.32"},
    "docs/training.md": {"0.36": "4.6608 / 12.9637"},
}
"""Page -> a number that is not in the file itself -> those that are: a ratio (/) or a mean (~) of them."""

NO_COMMAND = {
    "docs/quickstart.png": "a part of a report's page, photographed in a browser; the page says of which",
    "docs/photographs.png": "a part of a report's page, photographed in a browser; the page says of which",
    "docs/dashboard/depth-cifar10.png": "of the sweep in cifar10_sweep.json, before sweep_pictures.py was kept",
}
"""Pictures without a command that makes them -> why."""


def leaves(tree: Any) -> Iterator[float]:
    """All numbers of a results file, those in texts such as "0.97 to 1.00" too."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(value)
    elif isinstance(tree, str):
        yield from (float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*(?:\.\d+)?", tree))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))


def digits(number: str) -> float:
    """Half of the last digit that is shown."""
    return 0.5000001 * 10.0 ** -len(number.replace(",", "").partition(".")[2])


def printed(number: str, tree: Any, units: bool = False) -> bool:
    """Whether a results file has this number, to the digits that are shown; a fraction may be shown as percent.

    With `units`, seconds may be shown as milliseconds, too, and counts in thousands of millions (G) or in T.
    """
    near = [
        abs(one - value(number)) <= digits(number)
        for leaf in leaves(tree)
        for one in (
            leaf,
            100 * leaf,
            100 - leaf,
            leaf / 1000,
            *((1000 * leaf, leaf / 1e9, leaf / 1e12) if units else ()),
        )
    ]
    return any(near)


def derived(number: str, how: str, tree: Any) -> bool:
    """Whether it is the ratio or the mean of two numbers that the results file has."""
    first, kind, second = how.split()
    ours = value(first) / value(second) if kind == "/" else (value(first) + value(second)) / 2
    return printed(first, tree) and printed(second, tree) and abs(ours - value(number)) <= digits(number)


def parts(text: str) -> list[str]:
    """A page's paragraphs, points and rows, a line each, without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=\||- )", text)]


def claims(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The results files that are named, next to each other, and the words before them, which they are to bear out.

    The rows of a table that names none are borne out by the files of the paragraph above it, where that ends in a
    colon, else by those of the one below.
    """
    above: tuple[str, ...] = ()
    rows: list[str] = []
    whole = True
    for part in parts(text):
        row = part.startswith("|")
        named = tuple(FILE.findall(part))
        groups: list[tuple[list[str], str]] = []
        before = 0
        for found in FILE.finditer(part):
            said = part[before : found.start()]
            if groups and BESIDE.fullmatch(said):
                groups[-1][0].append(found[1])
            else:
                groups.append(([found[1]], said.split("|")[2] if row else said))
            before = found.end()
        yield from ((tuple(files), said) for files, said in groups)
        if row:
            rows.append(" ".join(" ".join(part.strip("|").split("|")[1:]).split()))
            whole = whole and not named
            continue
        if whole and (files := above or named):
            yield from ((files, said) for said in rows)
        above, rows, whole = named if part.endswith(":") else (), [], True


CLAIMS = [(page, files, said) for page in PAGES for files, said in claims((ROOT / page).read_text())]


@pytest.mark.parametrize(
    ("page", "files", "said"), CLAIMS, ids=[f"{page}: {' '.join(files)}" for page, files, _ in CLAIMS]
)
def test_numbers_were_printed(page: str, files: tuple[str, ...], said: str) -> None:
    """What stands in backticks on the other pages is a command, an option or a name; on the README it counts."""
    pages = page != "README.md"
    shown = re.sub(r"`[^`]*`", "", said) if pages else said
    for text in (text for file in files for text in NOT_MEASURED.get(page, {}).get(file, {})):
        shown = shown.replace(text, "")
    tree = [json.loads((ROOT / f"docs/results/{file}.json").read_text()) for file in files]
    known = {number: how for number, how in DERIVED.get(page, {}).items() if derived(number, how, tree)}
    missing = [one for one in NUMBER.findall(shown) if one not in known and not printed(one, tree, pages)]
    assert missing == [], f"{', '.join(files)} of docs/results does not bear out {missing} of: {said}"


def test_every_exception_is_still_needed() -> None:
    """Each stands in words that its file is to bear out, and each derived number on its page."""
    for page, files in NOT_MEASURED.items():
        for file, texts in files.items():
            said = " ".join(said for where, named, said in CLAIMS if where == page and file in named)
            assert [text for text in texts if text not in said] == [], f"{page}: {file}"
    for page, numbers in DERIVED.items():
        said = " ".join(said for where, _, said in CLAIMS if where == page)
        assert set(numbers) <= set(NUMBER.findall(said)), page


def test_cores_for_eight_gpus_follow_from_what_was_measured() -> None:
    """24,000 images/s by the milliseconds an image of each augmentation and source, in whole cores."""
    report = json.loads((ROOT / "docs/results/input_augmentation.json").read_text())
    ours = [row["ms an image"] for row in report["rows"] if row["loader"] == "raybone, exact"]
    wanted = [[-int(-24 * ms // 1) for ms in ours[at : at + 3]] for at in range(0, len(ours), 3)]
    text = (ROOT / "docs/input.md").read_text().partition("cores for eight GPUs of 3,000")[2]
    rows = [line.strip("|").split("|")[1:] for line in text.partition("##")[0].splitlines() if line.startswith("|")]
    assert [[int(cell) for cell in row] for row in rows[2:]] == wanted


def pictures(page: str) -> list[tuple[str, str, str]]:
    """Each picture that the page shows or links: its path, the words around it, and all of the page."""
    text = (ROOT / page).read_text()
    around = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return [
        (
            ((ROOT / page).parent / target).resolve().relative_to(ROOT.resolve()).as_posix(),
            "\n".join(around[max(at - 1, 0) : at + 2]),
            text,
        )
        for at, part in enumerate(around)
        for target in re.findall(r"\]\(([^)\s]+\.png)\)", part)
    ]


PICTURES = [(page, *picture) for page in PAGES for picture in pictures(page)]


def beside(picture: str, around: str, text: str) -> bool:
    """Whether what made it is named around it, or a command of the page writes into the picture's folder.

    That is a script, or the results file of its name, which holds its command.
    """
    scripts = re.findall(r"(?:jobs|benchmarks)/\w+\.py", around)
    for file in FILE.findall(around):
        if file == Path(picture).stem:
            command = json.loads((ROOT / f"docs/results/{file}.json").read_text())["command"]
            scripts += re.findall(r"benchmarks/\w+\.py", command)
    blocks = " ".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL))
    folder = Path(picture).parent.as_posix()
    named = re.search(rf"\s{re.escape(folder)}/?\s", blocks) is not None and folder != "docs"
    return any((ROOT / script).exists() for script in scripts) or named


@pytest.mark.parametrize(
    ("page", "picture", "around", "text"), PICTURES, ids=[f"{page}: {picture}" for page, picture, _, _ in PICTURES]
)
def test_pictures_stand_beside_what_made_them(page: str, picture: str, around: str, text: str) -> None:
    if picture in NO_COMMAND:
        assert "a part of" in around or "docs/results/" in around, f"{page} does not say what {picture} is"
    else:
        assert beside(picture, around, text), f"{page}: nothing beside {picture} says what makes it"


def test_every_picture_without_a_command_is_shown_somewhere() -> None:
    assert set(NO_COMMAND) <= {picture for _, picture, _, _ in PICTURES}


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
