"""The page's sections of numbers: results, charts, what varies, costs, classes."""

from html import escape
from typing import Any

from detection.report import charts
from detection.report.tables import Cell, table, two, wide
from detection.report.wording import (
    ERRORS,
    NONE,
    REGIME,
    between,
    interval,
    minutes,
    needed,
    percent,
    quantity,
    regime,
    relative,
    signed,
    title,
    trained,
    why,
)

MOST_DOTS = 30  # classes; more become a table


def results(summary: dict[str, Any], part: dict[str, Any]) -> str:
    main = part["main"]
    sizes = ["small", "medium", "large"] if summary["rows"][0][part["name"]]["sizes"] else []
    head = ["Backbone", *map(title, part["columns"]), *sizes]
    head += [f"Gain in {title(main)}", "Relative gain"]
    body = []
    for row in summary["rows"]:
        line = [two(interval(row[m])) for m in part["columns"]]
        line += [(percent(value), "") for value in row[part["name"]]["sizes"].values()]
        gain = row["gain"].get(main)
        if gain:
            line += [two(interval(gain["absolute"], signed)), two(relative(gain["relative"]))]
        else:
            line += [("baseline", "soft"), (NONE, "soft")]
        body.append([_name(summary, row), *line])
    said = (
        f"{part['name'].capitalize()}: {part['measure']}. Below a number its 95 % interval; grey: other images alone."
    )
    return table(said, head, body, _base(summary))


def varies(summary: dict[str, Any], part: dict[str, Any]) -> str:
    main = part["main"]
    head = ["Backbone", "Trainings", "Pretrainings, std", "Fine-tunings, std", f"{title(main)} from, to"]
    half = summary["intervals"]["half_width"]
    head += ["Gain, other images", "Other trainings", "Both", f"±{percent(half)} takes"]
    body = []
    for row in summary["rows"]:
        spread, gain = row["spread"].get(main), row["gain"].get(main)
        line: list[Cell] = [(trained(row), "text")]
        line += [(percent(spread[of]) if spread else NONE, "") for of in ("pretraining", "finetuning")]
        line.append((f"{percent(spread['min'])}–{percent(spread['max'])}" if spread else NONE, ""))
        for of in ("images", "trainings", "joint"):
            grey = "given" if gain and not gain["absolute"]["joint"] else ""
            line.append((between(gain["absolute"], of), grey) if gain else (NONE, "soft"))
        body.append([_name(summary, row), *line, (needed(gain, half) if gain else NONE, "text")])
    said = f"{part['name'].capitalize()}: standard deviations over the trainings, and 95 % intervals of the gain in "
    return table(f"{said}{title(main)} by each noise and both.", head, body, _base(summary))


def drawn(summary: dict[str, Any], part: dict[str, Any]) -> str:
    said = title(part["main"])
    cards = []
    if "curve" in summary["rows"][0][part["name"]]:
        curves = charts.legend(summary) + wide(charts.curves(summary, part))
        cards.append(("Precision and recall", "At IoU 0.5, mean over classes and trainings.", curves))
    cards.append(
        (
            f"{said[:1].upper()}{said[1:]} against cost",
            "Whiskers are 95 % intervals, grey ones of other images alone.",
            wide(charts.cost(summary, part)),
        )
    )
    pair = "".join(
        f'<div class="card"><h3>{name}</h3><p class="soft">{told}</p>{chart}</div>' for name, told, chart in cards
    )
    gain = ""
    if any(row["gain"] for row in summary["rows"]):
        over = f"Over {escape(summary['baseline'])}. {charts.WHISKERS}"
        chart = wide(charts.gains(summary, part))
        gain = f'<div class="card"><h3>Gain in {said}</h3><p class="soft">{over}</p>{chart}</div>'
    return f'{gain}<div class="charts">{pair}</div>'


def costs(summary: dict[str, Any]) -> str:
    head = ["Backbone", "Net", "Pretrained on", "Pretraining, %", "Parameters", "Multiply-adds", "Fine-tuning"]
    body = []
    for row in summary["rows"]:
        told = "<br>".join(f"{escape(name)} {percent(value)}" for name, value in row["pretrain"].items())
        body.append(
            [
                _name(summary, row),
                (escape(row["net"]), "text"),
                (escape(row["pretrained"] or "from scratch"), "text"),
                (told or NONE, ""),
                (quantity(row["params"]), ""),
                (quantity(row["macs"]), ""),
                (minutes(row["train_seconds"]), ""),
            ]
        )
    return table(
        "Parameters of the whole detector; multiply-adds of its backbone on one image.", head, body, _base(summary)
    )


def regimes(summary: dict[str, Any]) -> str:
    body = [
        [_name(summary, row), *((escape(cell), "text") for cell in regime(row["regime"]))] for row in summary["rows"]
    ]
    return table("How each was trained.", ["Backbone", *REGIME], body, _base(summary))


def errors(summary: dict[str, Any], part: dict[str, Any]) -> str:
    by_row = {row["label"]: row[part["name"]]["errors"] for row in summary["rows"]}
    kinds = list(by_row[summary["baseline"]])
    costs = [[_name(summary, row)] for row in summary["rows"]]
    differences: list[list[Cell]] = []
    for row, line in zip(summary["rows"], costs, strict=True):
        own = by_row[row["label"]]
        line += [two(interval(own[kind]["cost"])) for kind in kinds]
        if own[kinds[0]]["difference"]:
            differences.append([_name(summary, row), *(two(interval(own[k]["difference"], signed)) for k in kinds)])
    head = ["Backbone", *kinds]
    said = "".join(f"<li>{escape(line)}</li>" for line in why(summary, part))
    pieces = [
        f'<ul class="more">{said}</ul><p class="soft">{escape(ERRORS)}</p>',
        f'<div class="card">{charts.legend(summary)}{wide(charts.errors(summary, part))}</div>',
        table(f"{part['name'].capitalize()}: AP50 lost to each kind of error.", head, costs, _base(summary)),
    ]
    if differences:
        pieces.append(table(f"The same, more (+) or less (−) than {summary['baseline']}.", head, differences))
    return "".join(pieces)


def classes(summary: dict[str, Any], part: dict[str, Any]) -> str:
    pieces = []
    if len(summary["classes"]) <= MOST_DOTS:
        pieces.append(f'<div class="card">{charts.legend(summary)}{wide(charts.classes(summary, part))}</div>')
    head = ["Class", part["counted"].capitalize(), *(escape(row["label"]) for row in summary["rows"])]
    own = [row[part["name"]]["per_class"] for row in summary["rows"]]
    body = []
    for name in summary["classes"]:
        values = [(percent(by_class[name][part["of_class"]]), "") for by_class in own]
        body.append([(escape(name), ""), (str(own[0][name][part["counted"]]), ""), *values])
    said = part["of_class"] + (" at IoU 0.5" if part["main"].startswith("mAP") else "")
    numbers = table(f"{part['name'].capitalize()}: {said} of each class, mean over trainings.", head, body)
    pieces.append(f"<details><summary>As a table</summary>{numbers}</details>" if pieces else numbers)
    return "".join(pieces)


def _name(summary: dict[str, Any], row: dict[str, Any]) -> Cell:
    return charts.key(summary, row["label"]) + escape(row["label"]), ""


def _base(summary: dict[str, Any]) -> int:
    return next(i for i, row in enumerate(summary["rows"]) if row["label"] == summary["baseline"])
