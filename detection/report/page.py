"""The gains report as one HTML page that needs nothing else: no network, no scripts, light or dark, wide or narrow."""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from detection.report import charts, paper
from detection.report.pictures import HIT, SHOWN, Errors, Gallery, Picture
from detection.report.wording import (
    NONE,
    REGIME,
    between,
    headlines,
    interval,
    minutes,
    missing,
    needed,
    percent,
    quantity,
    regime,
    relative,
    signed,
    trained,
    training,
)

MOST_DOTS = 30  # classes; more become a table

Cell = tuple[str, str]
"""HTML, and its CSS class."""


def to_html(summary: dict[str, Any], pictures: Gallery | None = None) -> str:
    """The page for `report.to_json`'s dict. All text in it is escaped; pictures are optional."""
    first, *others = headlines(summary)
    more = "".join(f"<li>{_unbroken(line)}</li>" for line in others)
    notes = missing(summary) + sorted(
        {
            f"{row['label']}, {training(t)}: {note}"
            for row in summary["rows"]
            for t in row["trainings"]
            for note in t["notes"]
        }
    )
    draw = summary["intervals"]
    covers = " ".join(["AP in percent.", *draw["covers"], f"{draw['resamples']} resamples of the images."])
    return Template(files("detection.report").joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(summary["title"]),
        headline=f'<p class="lead">{_unbroken(first)}</p><ul class="more">{more}</ul>',
        notes=f'<ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>' if notes else "",
        covers=escape(covers),
        results=_results(summary),
        varies=_varies(summary),
        masks=_masks(summary),
        charts=_charts(summary),
        costs=_costs(summary) + _regimes(summary),
        classes=_classes(summary),
        comparable=escape(paper.COMPARABLE),
        paper=_paper(summary),
        pictures=_pictures(pictures) if pictures else "",
        provenance=_provenance(summary),
    )


def _results(summary: dict[str, Any]) -> str:
    head = ["Backbone", "AP", "AP50", "AP75", "small", "medium", "large", "Gain in AP", "Relative gain"]
    body = []
    for row in summary["rows"]:
        line = [_two(interval(row[m])) for m in ("AP", "AP50", "AP75")]
        line += [(percent(row["sizes"][m]), "") for m in ("APs", "APm", "APl")]
        gain = row["gain"].get("AP")
        if gain:
            line += [_two(interval(gain["absolute"], signed)), _two(relative(gain["relative"]))]
        else:
            line += [("baseline", "soft"), (NONE, "soft")]
        body.append([_name(summary, row), *line])
    return _table("Boxes. Below each number its 95 % interval; grey: other images alone.", head, body, _base(summary))


def _varies(summary: dict[str, Any]) -> str:
    head = ["Backbone", "Trainings", "Pretrainings, std", "Fine-tunings, std", "AP from, to", "Gain, other images"]
    head += ["Other trainings", "Both", f"±{percent(summary['intervals']['half_width'])} takes"]
    body = []
    for row in summary["rows"]:
        spread, gain = row["spread"].get("AP"), row["gain"].get("AP")
        line: list[Cell] = [(trained(row), "text")]
        line += [(percent(spread[of]) if spread else NONE, "") for of in ("pretraining", "finetuning")]
        line.append((f"{percent(spread['min'])}–{percent(spread['max'])}" if spread else NONE, ""))
        for of in ("images", "trainings", "joint"):
            grey = "given" if gain and not gain["absolute"]["joint"] else ""
            line.append((between(gain["absolute"], of), grey) if gain else (NONE, "soft"))
        body.append([_name(summary, row), *line, (needed(gain) if gain else NONE, "text")])
    said = "What varies: standard deviations over the trainings, and 95 % intervals of the gain by each noise and both."
    return _table(said, head, body, _base(summary))


def _masks(summary: dict[str, Any]) -> str:
    if not any(row["segm"] for row in summary["rows"]):
        return ""
    metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    body = [
        [_name(summary, row), *((percent((row["segm"] or {}).get(m)), "") for m in metrics)] for row in summary["rows"]
    ]
    head = ["Backbone", "AP", "AP50", "AP75", "small", "medium", "large"]
    return _table("Segmentation, masks. Mean over trainings.", head, body, _base(summary))


def _charts(summary: dict[str, Any]) -> str:
    cards = [
        (
            "Precision and recall",
            "At IoU 0.5, mean over classes and trainings.",
            charts.legend(summary) + _wide(charts.curves(summary)),
        ),
        (
            "AP against cost",
            "Whiskers are 95 % intervals, grey ones of other images alone.",
            _wide(charts.cost(summary)),
        ),
    ]
    pair = "".join(
        f'<div class="card"><h3>{title}</h3><p class="soft">{said}</p>{chart}</div>' for title, said, chart in cards
    )
    gain = ""
    if any(row["gain"] for row in summary["rows"]):
        said = f"Over {escape(summary['baseline'])}. {charts.WHISKERS}"
        chart = _wide(charts.gains(summary))
        gain = f'<div class="card"><h3>Gain in AP</h3><p class="soft">{said}</p>{chart}</div>'
    return f'<section aria-label="Charts">{gain}<div class="charts">{pair}</div></section>'


def _costs(summary: dict[str, Any]) -> str:
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
    return _table(
        "Parameters of the whole detector; multiply-adds of its backbone on one image.", head, body, _base(summary)
    )


def _regimes(summary: dict[str, Any]) -> str:
    body = [
        [_name(summary, row), *((escape(cell), "text") for cell in regime(row["regime"]))] for row in summary["rows"]
    ]
    return _table("How each was trained.", ["Backbone", *REGIME], body, _base(summary))


def _classes(summary: dict[str, Any]) -> str:
    parts = []
    if len(summary["classes"]) <= MOST_DOTS:
        parts.append(f'<div class="card">{charts.legend(summary)}{_wide(charts.classes(summary))}</div>')
    head = ["Class", "Objects", *(escape(row["label"]) for row in summary["rows"])]
    body = []
    for name in summary["classes"]:
        values = [(percent(row["per_class"][name]["AP"]), "") for row in summary["rows"]]
        body.append([(escape(name), ""), (str(summary["rows"][0]["per_class"][name]["objects"]), ""), *values])
    table = _table("AP of each class, mean over trainings.", head, body)
    parts.append(f"<details><summary>As a table</summary>{table}</details>" if parts else table)
    return "".join(parts)


def _paper(summary: dict[str, Any]) -> str:
    head = ["Data", "Metric", "VGG-16", "ResNet-101", "Gain", "Relative gain", "Table"]
    body = [
        [
            (escape(g["data"]), ""),
            (g["metric"], "text"),
            (f"{g['vgg16']:.1f}", ""),
            (f"{g['resnet101']:.1f}", ""),
            (f"{g['absolute']:+.1f}", ""),
            (f"{g['relative']:+.0f}\u00a0%", ""),
            (str(g["table"]), ""),
        ]
        for g in summary["paper"]
    ]
    return _table("The paper's own numbers: arXiv:1512.03385, Faster R-CNN, percent.", head, body)


def _pictures(gallery: Gallery) -> str:
    keys = [("truth", "object"), ("hit", "found"), ("wrong", "wrong"), ("missed", "missed"), ("other", "detection")]
    legend = "".join(f'<span class="swatch {kind}"></span>{text}' for kind, text in keys)
    samples = "".join(f'<div class="sample">{_figures(p, f"s{i}")}</div>' for i, p in enumerate(gallery.samples))
    parts = [
        '<section aria-labelledby="pictures"><h2 id="pictures">Pictures</h2>',
        f'<p class="soft">Detections scored {SHOWN} or more, a hit from IoU {HIT}. Colours:{legend}</p>',
        "<h3>Detections beside ground truth</h3>",
        '<p class="soft">Spread evenly over the images that have objects; nobody chose them.</p>',
        f'<div class="samples">{samples}</div>',
    ]
    for k, errors in enumerate(gallery.errors):
        parts.append(_errors(errors, k))
    return "".join(parts) + "</section>"


def _errors(errors: Errors, k: int) -> str:
    who = f"{escape(errors.label)} (seed {errors.seed})"
    parts = []
    for kind, title, said, pictures in (
        ("w", "surest mistakes", "False detections of the highest score, one an image.", errors.wrong),
        ("m", "largest misses", "Objects not found, the largest first, one an image.", errors.missed),
    ):
        shown = "".join(_figures(p, f"{kind}{k}-{i}") for i, p in enumerate(pictures))
        body = f'<div class="set">{shown}</div>' if shown else "<p>None.</p>"
        parts.append(f'<h3>{who}: {title}</h3><p class="soft">{said}</p>{body}')
    return "".join(parts)


def _figures(picture: Picture, key: str) -> str:
    """A figure a panel; the JPEG is embedded once and used by all."""
    w, h = picture.width, picture.height
    figures = []
    for i, panel in enumerate(picture.panels):
        where = f"image {picture.image_id}"
        image = f'<use href="#{key}"/>'
        if i == 0:
            image = f'<image id="{key}" width="{w}" height="{h}" href="data:image/jpeg;base64,{picture.jpeg}"/>'
        marks = []
        for box in panel.boxes:
            x, y, bw, bh = box.xywh
            marks.append(f'<rect class="{box.kind}" x="{x}" y="{y}" width="{bw}" height="{bh}" rx="1.5"/>')
        for box in panel.boxes:  # names over all boxes, and inside the picture
            x, y, _, _ = box.xywh
            at = f'x="{min(x + 3, max(2, w - 7.2 * len(box.text))):.1f}" y="{y - 4 if y > 17 else y + 14:.1f}"'
            marks.append(f"<text {at}>{escape(box.text)}</text>" if box.text else "")
        label = escape(f"{where}: {panel.caption}")
        figures.append(
            f'<figure><svg class="picture" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
            f"{image}{''.join(marks)}</svg><figcaption>{escape(panel.caption)}{'' if i else f' · {where}'}</figcaption>"
            "</figure>"
        )
    return "".join(figures)


def _provenance(summary: dict[str, Any]) -> str:
    draw = summary["intervals"]
    facts = summary["data"] | summary["environment"]
    facts["bootstrap"] = f"{draw['resamples']} resamples, seed {draw['seed']}"
    listed = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in facts.items())
    head = ["Backbone", "Training", "AP", "AP50", "AP75", "Results", "Provenance"]
    body = [
        [
            (escape(row["label"]), ""),
            (training(t), "text"),
            *((percent(t[m]), "") for m in ("AP", "AP50", "AP75")),
            (escape(t["results"]), "text"),
            (escape("; ".join(f"{k}: {_plain(v)}" for k, v in t["provenance"].items())), "text"),
        ]
        for row in summary["rows"]
        for t in row["trainings"]
    ]
    recipe = escape(json.dumps(summary["recipe"], indent=2))
    return (
        f"<dl>{listed}</dl><p>To make it again; what is finished is not trained twice:</p>"
        f"<pre>{escape(summary['command'])}</pre>"
        f"<details><summary>Detector recipe</summary><pre>{recipe}</pre></details>"
        f"<details><summary>Every training</summary>{_table('One line each.', head, body)}</details>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _unbroken(line: str) -> str:
    """Escaped, with intervals that stay on one line, and those of images alone in grey."""
    told = re.sub(r"\[[\d.+−±]+(?:–| to )[\d.+−±]+\]", r'<span class="given">\g<0></span>', escape(line))
    return told.replace("–", "&#8288;–&#8288;")


def _name(summary: dict[str, Any], row: dict[str, Any]) -> Cell:
    return charts.key(summary, row["label"]) + escape(row["label"]), ""


def _two(text: str) -> Cell:
    """A number, and under it its interval, grey where that is of images alone."""
    found = re.fullmatch(r"(.*?) ([(\[])(.*)[)\]]", text)
    if not found:
        return text, ""
    value, bracket, span = found.groups()
    return f"{value}<small{_class('given' if bracket == '[' else '')}>{span}</small>", ""


def _base(summary: dict[str, Any]) -> int:
    return next(i for i, row in enumerate(summary["rows"]) if row["label"] == summary["baseline"])


def _table(caption: str, head: Sequence[str], body: Sequence[Sequence[Cell]], base: int | None = None) -> str:
    """Cells are HTML; the first of a line is its header. Line `base` is tinted."""
    classes = [name for _, name in body[0]] if body else [""] * len(head)
    top = "".join(
        f'<th scope="col"{_class("text" if name == "text" else "")}>{h}</th>'
        for h, name in zip(head, classes, strict=True)
    )
    lines = []
    for i, (first, *rest) in enumerate(body):
        cells = "".join(f"<td{_class(name)}>{text}</td>" for text, name in rest)
        lines.append(f'<tr{_class("base" if i == base else "")}><th scope="row">{first[0]}</th>{cells}</tr>')
    title = escape(caption)
    said = f"<caption><span>{title}</span></caption>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>{said}'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _wide(chart: str) -> str:
    return f'<div class="scroll" tabindex="0">{chart}</div>'
