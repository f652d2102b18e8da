"""What the report says of a ladder, in sentences, as Markdown and on the page; all from its JSON."""

import base64
from html import escape
from typing import Any

from detection.report.ladder_chart import draw
from detection.report.tables import Cell, cell, lined, table, two
from detection.report.wording import NONE, agreed, interval, minutes, percent, quantity, title

COST = (
    "Seconds of training and validation as measured, starts left out, over those of the same rows on the last rung; "
    "multiply-adds as foretold, forward and backward, validation included. Pretraining, which all rungs share, is in "
    "neither. Tau is Kendall's tau-b with the order of the last rung; its interval holds other images and other "
    "trainings."
)


def headline(ladder: dict[str, Any]) -> str:
    """Whether a cheap rung gives the order of the last one."""
    *rungs, last = ladder["rungs"]
    enough, cheap = ladder["enough"], ladder["cheap"]
    right = [rung for rung in rungs if rung["tau"]["value"] is not None and rung["tau"]["value"] >= enough]
    whole = len(last["worth"])
    # Of cheap ones an order of all rows says more.
    right.sort(key=lambda rung: (_cost(rung) > cheap, len(rung["tau"]["rows"]) < whole, _cost(rung)))
    if not right:
        return f"No rung gives the order of {last['name']} with a tau of {enough:g} or more."
    first = right[0]
    of = len(first["tau"]["rows"])
    some = "" if of == whole else f", by {of} of {whole} rows,"
    told = f"gives the order of {last['name']}{some} with tau {agreed(first['tau'])}, at {_costs(first)}"
    if _cost(first) > cheap:
        return (
            f"No rung gives the order of {last['name']} with a tau of {enough:g} or more at {percent(cheap, 0)} % of "
            f"its seconds or less; {first['name']} {told}."
        )
    joint = first["tau"]["joint"]
    if joint is None:
        sure = first["tau"]["why"].partition(":")[0]
    elif joint["low"] >= enough:
        sure = f"all of its interval is at {enough:g} or more"
    else:
        sure = f"but its interval reaches below {enough:g}"
    return f"{first['name']} {told}; {sure}."


def _cost(rung: dict[str, Any]) -> float:
    share = rung["seconds_share"]
    return float("inf") if share is None else share


def _costs(rung: dict[str, Any]) -> str:
    return f"{percent(rung['seconds_share'])} % of its seconds"


def notes(ladder: dict[str, Any]) -> list[str]:
    """A sentence for each rung, row or number that is not there, and why."""
    lines = [f"Rung {name} is missing: {why}" for name, why in ladder["left_out"].items()] + ladder["missing"]
    for rung in ladder["rungs"]:
        if rung["without"]:
            lines.append(f"Rung {rung['name']} is without {', '.join(rung['without'])}, and compared without.")
        if rung["tau"] and rung["tau"]["why"]:
            lines.append(f"Rung {rung['name']}: {rung['tau']['why']}.")
    return lines


HEAD = ("Rung", "Recipe otherwise", "Labels", "Trainings", "Tau with the last", "Seconds", "%", "Multiply-adds", "%")


def lines_of(ladder: dict[str, Any]) -> list[list[str]]:
    """A line a rung, a cell for each of `HEAD`."""
    body = []
    for rung in ladder["rungs"]:
        changes = ", ".join(f"{field} {value}" for field, value in rung["changes"].items())
        work = rung["multiply_adds"]
        body.append(
            [
                rung["name"],
                changes or NONE,
                f"{rung['label_images']:,} images",
                str(rung["trainings"]),
                agreed(rung["tau"]) if rung["tau"] else "the last",
                NONE if rung["seconds"] is None else minutes(rung["seconds"]),
                percent(rung["seconds_share"]),
                NONE if work is None else quantity(work),
                percent(rung["multiply_adds_share"]),
            ]
        )
    return body


def worths(ladder: dict[str, Any]) -> list[list[str]]:
    """A line a row, best of the last rung first: its label, and what it is worth on each rung."""
    rungs = ladder["rungs"]
    last = rungs[-1]["worth"]
    order = sorted(last, key=lambda label: -(last[label]["value"] or 0))
    order += dict.fromkeys(label for rung in rungs for label in rung["worth"] if label not in last)
    found = [[interval(rung["worth"][label]) if label in rung["worth"] else NONE for rung in rungs] for label in order]
    return [[label, *cells] for label, cells in zip(order, found, strict=True)]


def markdown(ladder: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    names = [rung["name"] for rung in ladder["rungs"]]
    return [
        "## Does the cheap answer give the order of the dear one?",
        "",
        *(f"- {cell(line)}" for line in (headline(ladder), *notes(ladder))),
        "",
        *lined(HEAD, lines_of(ladder)),
        "",
        COST,
        "",
        f"{title(ladder['main'])} on each rung:",
        "",
        *lined(["Backbone", *names], worths(ladder)),
    ]


def html(ladder: dict[str, Any]) -> str:
    """The page's section."""
    said = "".join(f"<li>{escape(line)}</li>" for line in (headline(ladder), *notes(ladder)))
    numbers: list[list[Cell]] = []
    for line in lines_of(ladder):
        first, changes, *rest = map(escape, line)
        numbers.append([(first, ""), (changes, "text"), *(two(cell) for cell in rest)])
    names = [rung["name"] for rung in ladder["rungs"]]
    worth: list[list[Cell]] = [[(escape(label), ""), *map(two, cells)] for label, *cells in worths(ladder)]
    main = title(ladder["main"])
    picture = base64.b64encode(draw(ladder)).decode()
    alt = f"{main} of every row against the share of labels, and against cost"
    return (
        f'<section aria-labelledby="ladder"><h2 id="ladder">Does the cheap answer give the order of the dear one?</h2>'
        f'<ul class="more">{said}</ul>{table(COST, HEAD, numbers)}'
        f'<div class="card"><img class="drawn" alt="{alt}" src="data:image/png;base64,{picture}"></div>'
        f"{table(f'{main} on each rung.', ['Backbone', *map(escape, names)], worth)}</section>"
    )
