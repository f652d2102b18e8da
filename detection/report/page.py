"""The gains report as one HTML page that needs nothing else: no network, no scripts, light or dark, wide or narrow."""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from backbone.pages import style
from detection.report import ladder_text, paper, sections
from detection.report.pictures import HIT, SHOWN, Errors, Gallery, Picture
from detection.report.tables import table
from detection.report.wording import described, headlines, missing, percent, title, training


def to_html(summary: dict[str, Any], pictures: Mapping[str, Gallery] | None = None) -> str:
    """The page for `report.to_json`'s dict. All text in it is escaped; pictures, by part, are optional."""
    (first, *others), *more_parts = (headlines(summary, i) for i in range(len(summary["parts"])))
    lists = "".join(
        f'<ul class="more">{"".join(f"<li>{_unbroken(line)}</li>" for line in lines)}</ul>'
        for lines in (others, *more_parts)
    )
    notes = missing(summary) + sorted(
        {
            f"{row['label']}, {training(t)}: {note}"
            for row in summary["rows"]
            for t in row["trainings"]
            for note in t["notes"]
        }
    )
    draw = summary["intervals"]
    covers = " ".join(["Percent.", *draw["covers"], f"{draw['resamples']} resamples of the images."])
    return shell(
        summary["title"],
        "page.html",
        headline=f'<p class="lead">{_unbroken(first)}</p>{lists}',
        notes=f'<ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>' if notes else "",
        covers=escape(covers),
        results="".join(sections.results(summary, part) for part in summary["parts"]),
        ladder=ladder_text.html(summary["ladder"]) if "ladder" in summary else "",
        parts="".join(_part(summary, part) for part in summary["parts"]),
        varies="".join(sections.varies(summary, part) for part in summary["parts"]),
        costs=sections.costs(summary) + sections.regimes(summary),
        paper=_paper(summary) if summary["paper"] else "",
        pictures=_all_pictures(pictures) if pictures else "",
        provenance=_provenance(summary),
    )


def shell(title: str, body: str, **pieces: str) -> str:
    """A page of the body template of this name; the pieces are HTML."""
    inside = Template(files("detection.report").joinpath(body).read_text("utf-8"))
    around = Template(files("detection.report").joinpath("shell.html").read_text("utf-8"))
    return around.substitute(style=style(), title=escape(title), body=inside.substitute(title=escape(title), **pieces))


def _part(summary: dict[str, Any], part: dict[str, Any]) -> str:
    name = part["name"]
    why = ""
    if "errors" in summary["rows"][0][name]:
        why = f"<h3>Why: what each kind of error costs</h3>{sections.errors(summary, part)}"
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{name.capitalize()}</h2>'
        f"{sections.drawn(summary, part)}{why}"
        f"<h3>Class by class</h3>{sections.classes(summary, part)}</section>"
    )


def _paper(summary: dict[str, Any]) -> str:
    head = ["Data", "Metric", "VGG-16", "ResNet-101", "Gain", "Relative gain", "Table"]
    body = [
        [
            (escape(g["data"]), ""),
            (escape(described(g["metric"])), "text"),
            (f"{g['vgg16']:.1f}", ""),
            (f"{g['resnet101']:.1f}", ""),
            (f"{g['absolute']:+.1f}", ""),
            (f"{g['relative']:+.0f}\u00a0%", ""),
            (str(g["table"]), ""),
        ]
        for g in summary["paper"]
    ]
    numbers = table("The paper's own numbers: arXiv:1512.03385, Faster R-CNN, percent.", head, body)
    return (
        f'<section aria-labelledby="paper"><h2 id="paper">The paper, beside</h2><p>{escape(paper.COMPARABLE)}</p>'
        f"{numbers}</section>"
    )


def _all_pictures(galleries: Mapping[str, Gallery]) -> str:
    keys = [("truth", "object"), ("hit", "found"), ("wrong", "wrong"), ("missed", "missed"), ("other", "detection")]
    legend = "".join(f'<span class="swatch {kind}"></span>{text}' for kind, text in keys)
    shown = f"Detections scored {SHOWN} or more, and of a sample that has none the surest"
    if "pixels" in galleries:
        shown = "All pixels of a class are one region, its number their mean probability; without what is ignored"
    parts = [
        '<section aria-labelledby="pictures"><h2 id="pictures">Pictures</h2>',
        '<p class="soft">Of the baseline and the row of the highest value alone, one training of each. '
        f"{shown}, a hit from IoU {HIT}. Colours:{legend}</p>",
    ]
    for name, gallery in galleries.items():
        parts.append(_pictures(gallery, name))
    return "".join(parts) + "</section>"


def _pictures(gallery: Gallery, name: str) -> str:
    samples = "".join(f'<div class="sample">{figures(p, f"{name}-s{i}")}</div>' for i, p in enumerate(gallery.samples))
    parts = [
        f"<h3>{name.capitalize()}: {'regions' if name == 'pixels' else 'detections'} beside ground truth</h3>",
        '<p class="soft">Spread evenly over the images that have objects; nobody chose them.</p>',
        f'<div class="samples">{samples}</div>',
    ]
    for k, errors in enumerate(gallery.errors):
        parts.append(_errors(errors, name, k))
    return "".join(parts)


def _errors(errors: Errors, name: str, k: int) -> str:
    who = f"{name.capitalize()}, {escape(errors.label)} (seed {errors.seed})"
    parts = []
    for kind, worst, said, pictures in (
        ("w", "surest mistakes", "False detections of the highest score, one an image.", errors.wrong),
        ("m", "largest misses", "Objects not found, the largest first, one an image.", errors.missed),
    ):
        shown = "".join(figures(p, f"{name}-{kind}{k}-{i}") for i, p in enumerate(pictures))
        body = f'<div class="set">{shown}</div>' if shown else "<p>None.</p>"
        parts.append(f'<h3>{who}: {worst}</h3><p class="soft">{said}</p>{body}')
    return "".join(parts)


def figures(picture: Picture, key: str) -> str:
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
            rect = f'<rect class="{box.kind}" x="{x}" y="{y}" width="{bw}" height="{bh}" rx="1.5"/>'
            marks.append(f'<path class="{box.kind}" d="{box.path}"/>' if box.path else rect)
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
    metrics = [(part["name"], name) for part in summary["parts"] for name in part["columns"]]
    head = ["Backbone", "Training", *(title(name) for _, name in metrics), "Results", "Provenance"]
    body = [
        [
            (escape(row["label"]), ""),
            (training(t), "text"),
            *((percent(t[name]), "") for _, name in metrics),
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
        f"<details><summary>Every training</summary>{table('One line each.', head, body)}</details>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _unbroken(line: str) -> str:
    """Escaped, with intervals that stay on one line, and those of images alone in grey."""
    told = re.sub(r"\[[\d.+−±]+(?:–| to )[\d.+−±]+\]", r'<span class="given">\g<0></span>', escape(line))
    return told.replace("–", "&#8288;–&#8288;")
