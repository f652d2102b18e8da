"""One report over several detectors: a block for each, and whether they put the backbones in the same order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import combinations
from typing import Any

from backbone.storage import filesystem
from detection.report import page, sections
from detection.report.orders import Judged, agreement
from detection.report.tables import Cell, cell, lined, table, two
from detection.report.wording import NONE, agreed, headlines, interval, missing, title

FORMAT = 4
TAU = (
    "Kendall's tau-b of two orders: 1 is the same, -1 the reverse. Its interval holds other images and other "
    "trainings, in square brackets other images alone."
)


def to_json(
    name: str, told: dict[str, dict[str, Any]], judged: Mapping[str, Judged], left_out: Mapping[str, str], command: str
) -> dict[str, Any]:
    """Every number: of each block what its own report.json has, and of each two the agreement of their orders."""
    orders = [
        {"of": [one, other], **asdict(agreement(judged[one], judged[other]))} for one, other in combinations(told, 2)
    ]
    return {
        "format": FORMAT,
        "title": name,
        "orders": orders,
        "blocks": told,
        "left_out": dict(left_out),
        "command": command,
    }


def write(
    url: str,
    name: str,
    told: dict[str, dict[str, Any]],
    judged: Mapping[str, Judged],
    left_out: Mapping[str, str],
    command: str,
) -> str:
    """Write `report.json`, `report.md` and `report.html` into the folder `url`; return the Markdown.

    Args:
        told: block -> what `summary.write` has written into the folder of that name.
        judged: block -> its rows as orders compare them.
        left_out: block -> why it has no report.
    """
    summary = to_json(name, told, judged, left_out, command)
    text = to_markdown(summary)
    fs, folder = filesystem(url)
    for file, content in (
        ("report.json", json.dumps(summary, indent=1, allow_nan=False)),
        ("report.md", text),
        ("report.html", to_html(summary)),
    ):
        fs.pipe_file(f"{folder}/{file}", content.encode())
    return text


def order(block: dict[str, Any]) -> list[str]:
    """Labels of a block, best first."""
    main = block["parts"][0]["main"]
    return [row["label"] for row in sorted(block["rows"], key=lambda row: -(row[main]["value"] or 0))]


def level(block: dict[str, Any], rows: Sequence[str]) -> list[str]:
    """Those of `rows` that another is worth exactly as much as: which comes first says nothing."""
    main = block["parts"][0]["main"]
    worth = {row["label"]: row[main]["value"] or 0.0 for row in block["rows"] if row["label"] in rows}
    return [label for label, value in worth.items() if list(worth.values()).count(value) > 1]


def sentences(summary: dict[str, Any]) -> list[str]:
    """Whether the order is the same in all, as seen, and how sure that is."""
    blocks, lines = summary["blocks"], []
    orders = {name: order(block) for name, block in blocks.items()}
    rows = [label for label in next(iter(orders.values())) if all(label in one for one in orders.values())]
    seen = {tuple(label for label in one if label in rows) for one in orders.values()}
    tied = {name: same for name, block in blocks.items() if (same := level(block, rows))}
    lines += [
        f"{name} does not tell {' and '.join(same)} apart: their values are equal." for name, same in tied.items()
    ]
    if len(blocks) > 1 and len(rows) > 1 and not tied:
        if len(seen) == 1:
            lines.append(f"The order of backbones is the same in all {len(blocks)}: {', '.join(next(iter(seen)))}.")
        else:
            told = "; ".join(f"{name}: {', '.join(one)}" for name, one in orders.items())
            lines.append(f"The order of backbones is not the same in all, best first: {told}.")
    for pair in summary["orders"]:
        said = " and ".join(pair["of"])
        if pair["value"] is None:
            lines.append(f"{said}: no tau, {pair['why']}.")
            continue
        lines.append(f"{said}: tau {agreed(pair)}" + (f"; {pair['why']}." if pair["why"] else "."))
    lines += [f"{name} is missing: {' '.join(why.split())}" for name, why in summary["left_out"].items()]
    return lines


def _worths(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line a row: what it is worth in each block, and its place there."""
    blocks = summary["blocks"]
    head = ["Backbone", *(f"{name}, {title(block['parts'][0]['main'])}" for name, block in blocks.items())]
    places = {name: order(block) for name, block in blocks.items()}
    worth = {
        name: {row["label"]: interval(row[block["parts"][0]["main"]]) for row in block["rows"]}
        for name, block in blocks.items()
    }
    body = []
    for label in dict.fromkeys(label for one in places.values() for label in one):
        cells = [
            f"{places[name].index(label) + 1}. {worth[name][label]}" if label in worth[name] else NONE
            for name in blocks
        ]
        body.append([label, *cells])
    return head, body


def to_markdown(summary: dict[str, Any]) -> str:
    """`to_json`'s dict as Markdown; the rest of each block is in its own folder."""
    lines = [f"# {cell(summary['title'])}", "", *(f"- {cell(line)}" for line in sentences(summary)), "", TAU, ""]
    lines += [*lined(*_worths(summary)), ""]
    for name, block in summary["blocks"].items():
        lines += [f"## {cell(name)}", ""]
        lines += [f"- {cell(line)}" for part in range(len(block["parts"])) for line in headlines(block, part)]
        lines += [f"- {cell(line)}" for line in missing(block)]
        lines += ["", f"All of it: {cell(name)}/report.html", ""]
    return "\n".join([*lines, f"- command: {cell(summary['command'])}"]) + "\n"


def to_html(summary: dict[str, Any]) -> str:
    """The page: orders, and of each block its results and charts. All text in it is escaped."""
    head, worths = _worths(summary)
    body: list[list[Cell]] = [[(escape(label), ""), *(two(escape(text)) for text in texts)] for label, *texts in worths]
    first, *others = sentences(summary) or ["One detector alone."]
    blocks = "".join(
        f'<section aria-label="{escape(name)}"><h2>{escape(name)}</h2>'
        f'<ul class="more">{"".join(f"<li>{escape(line)}</li>" for line in (*headlines(block), *missing(block)))}</ul>'
        + "".join(sections.results(block, part) + sections.drawn(block, part) for part in block["parts"])
        + f'<p><a href="{escape(name)}/report.html">All of it</a></p></section>'
        for name, block in summary["blocks"].items()
    )
    return page.shell(
        summary["title"],
        "several.html",
        headline=escape(first),
        sentences="".join(f"<li>{escape(line)}</li>" for line in others),
        order=table(f"Place, and percent with its 95 % interval. {TAU}", list(map(escape, head)), body),
        blocks=blocks,
        command=escape(summary["command"]),
    )
