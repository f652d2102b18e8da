"""Tables, and what stands in them: of the page, and of Markdown."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

Cell = tuple[str, str]
"""HTML, and its CSS class."""


def two(text: str) -> Cell:
    """A number, and under it its interval, grey where that is of images alone."""
    found = re.fullmatch(r"(.*?) ([(\[])(.*)[)\]]", text)
    if not found:
        return text, ""
    value, bracket, span = found.groups()
    return f"{value}<small{css('given' if bracket == '[' else '')}>{span}</small>", ""


def table(caption: str, head: Sequence[str], body: Sequence[Sequence[Cell]], base: int | None = None) -> str:
    """Cells are HTML; the first of a line is its header. Line `base` is tinted."""
    classes = [name for _, name in body[0]] if body else [""] * len(head)
    top = "".join(
        f'<th scope="col"{css("text" if name == "text" else "")}>{h}</th>'
        for h, name in zip(head, classes, strict=True)
    )
    lines = []
    for i, (first, *rest) in enumerate(body):
        cells = "".join(f"<td{css(name)}>{text}</td>" for text, name in rest)
        lines.append(f'<tr{css("base" if i == base else "")}><th scope="row">{first[0]}</th>{cells}</tr>')
    title = escape(caption)
    said = f"<caption><span>{title}</span></caption>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>{said}'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def css(name: str) -> str:
    return f' class="{name}"' if name else ""


def wide(chart: str) -> str:
    return f'<div class="scroll" tabindex="0">{chart}</div>'


def cell(value: Any) -> str:
    """Text of Markdown that neither ends a table cell nor becomes a tag."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def lined(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell(text) for text in line) + " |" for line in lines]
