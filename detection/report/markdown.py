"""The gains report as Markdown."""

import json
from typing import Any

from detection.report import paper
from detection.report.bootstrap import METRICS
from detection.report.wording import (
    NONE,
    REGIME,
    SIZES,
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
)


def to_markdown(summary: dict[str, Any]) -> str:
    """`to_json`'s dict as Markdown: tables for a README or a pull request."""
    rows, base = summary["rows"], summary["baseline"]
    lines = [f"# {_cell(summary['title'])}", ""]
    lines += [f"- {_cell(line)}" for line in headlines(summary)]
    lines += [f"- {_cell(line)}" for line in missing(summary)]
    lines += ["", *(f"{line}\n" for line in summary["intervals"]["covers"])]
    head = ["Backbone", "AP", "AP50", "AP75", *SIZES, "Gain in AP", "Relative"]
    body = []
    for row in rows:
        gain = row["gain"].get("AP")
        body.append(
            [
                row["label"] + (" (baseline)" if row["label"] == base else ""),
                interval(row["AP"]),
                *(percent(row[m]["value"]) for m in METRICS[1:]),
                *(percent(row["sizes"][m]) for m in SIZES),
                interval(gain["absolute"], signed) if gain else NONE,
                relative(gain["relative"]) if gain else NONE,
            ]
        )
    lines += [*_table(head, body), "", "What varies, and 95 % intervals of the gain in AP by each noise and both:", ""]
    head = ["Backbone", "Trainings", "Pretrainings, std", "Fine-tunings, std", "Gain, other images"]
    head += ["Other trainings", "Both", f"±{percent(summary['intervals']['half_width'])} takes"]
    body = []
    for row in rows:
        gain, spread = row["gain"].get("AP"), row["spread"].get("AP", {})
        parts = [between(gain["absolute"], of) for of in ("images", "trainings", "joint")] if gain else [NONE] * 3
        body.append(
            [
                row["label"],
                trained(row),
                percent(spread.get("pretraining")),
                percent(spread.get("finetuning")),
                *parts,
                needed(gain) if gain else NONE,
            ]
        )
    lines += [*_table(head, body), "", "How each was trained:", ""]
    body = [[row["label"], *regime(row["regime"])] for row in rows]
    lines += [*_table(["Backbone", *REGIME], body), ""]
    if any(row["segm"] for row in rows):
        body = [[row["label"], *(percent((row["segm"] or {}).get(m)) for m in METRICS)] for row in rows]
        lines += ["Masks, mean over trainings:", "", *_table(["Backbone", *METRICS], body), ""]
    head = ["Backbone", "Net", "Pretrained on", "Pretraining", "Parameters", "Multiply-adds", "Fine-tuning"]
    body = [
        [
            row["label"],
            row["net"],
            row["pretrained"] or "from scratch",
            ", ".join(f"{name} {percent(value)}" for name, value in row["pretrain"].items()) or "–",
            quantity(row["params"]),
            quantity(row["macs"]),
            minutes(row["train_seconds"]),
        ]
        for row in rows
    ]
    lines += [*_table(head, body), "", "## The paper", ""]
    head = ["Table", "Data", "Metric", "VGG-16", "ResNet-101", "Gain", "Relative"]
    body = [
        [
            str(g["table"]),
            g["data"],
            g["metric"],
            f"{g['vgg16']:.1f}",
            f"{g['resnet101']:.1f}",
            f"{g['absolute']:+.1f}",
            f"{g['relative']:+.0f}\u00a0%",
        ]
        for g in summary["paper"]
    ]
    lines += [*_table(head, body), "", paper.COMPARABLE, "", "## Provenance", ""]
    facts = summary["data"] | summary["environment"] | {"command": summary["command"]}
    lines += [f"- {_cell(name)}: {_cell(value)}" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """Text that neither ends a table cell nor becomes a tag."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]
