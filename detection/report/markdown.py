"""The gains report as Markdown."""

from typing import Any

from detection.report import ladder_text, paper
from detection.report.tables import cell, lined
from detection.report.wording import (
    ERRORS,
    NONE,
    REGIME,
    SIZES,
    between,
    described,
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
    title,
    trained,
    why,
)


def to_markdown(summary: dict[str, Any]) -> str:
    """`to_json`'s dict as Markdown: tables for a README or a pull request."""
    rows = summary["rows"]
    lines = [f"# {cell(summary['title'])}", ""]
    lines += [f"- {cell(line)}" for part in range(len(summary["parts"])) for line in headlines(summary, part)]
    lines += [f"- {cell(line)}" for line in missing(summary)]
    lines += ["", *(f"{line}\n" for line in summary["intervals"]["covers"])]
    for part in summary["parts"]:
        lines += [f"{part['name'].capitalize()}, {part['measure']}:", "", *_results(summary, part), ""]
    if "ladder" in summary:
        lines += [*ladder_text.markdown(summary["ladder"]), ""]
    explained = [part for part in summary["parts"] if "errors" in summary["rows"][0][part["name"]]]
    for part in explained:
        lines += [
            f"Why, {part['name']}: AP50 lost to each kind of error, and more (+) or less (−) than the baseline:",
            "",
        ]
        lines += [*_errors(summary, part), "", *(f"- {cell(line)}" for line in why(summary, part)), ""]
    lines += [ERRORS, ""] if explained else []
    for part in summary["parts"]:
        lines += [f"What varies, {part['name']}, and 95 % intervals of the gain by each noise and both:", ""]
        lines += [*_varies(summary, part), ""]
    lines += ["How each was trained:", ""]
    body = [[row["label"], *regime(row["regime"])] for row in rows]
    lines += [*lined(["Backbone", *REGIME], body), ""]
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
    lines += [*lined(head, body), ""]
    if summary["paper"]:
        lines += ["## The paper", "", *_paper(summary), "", paper.COMPARABLE, ""]
    lines += ["## Provenance", ""]
    facts = summary["data"] | summary["environment"] | {"command": summary["command"]}
    lines += [f"- {cell(name)}: {cell(value)}" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def _paper(summary: dict[str, Any]) -> list[str]:
    head = ["Table", "Data", "Metric", "VGG-16", "ResNet-101", "Gain", "Relative"]
    body = [
        [
            str(g["table"]),
            g["data"],
            described(g["metric"]),
            f"{g['vgg16']:.1f}",
            f"{g['resnet101']:.1f}",
            f"{g['absolute']:+.1f}",
            f"{g['relative']:+.0f}\u00a0%",
        ]
        for g in summary["paper"]
    ]
    return lined(head, body)


def _results(summary: dict[str, Any], part: dict[str, Any]) -> list[str]:
    main = part["main"]
    sizes = SIZES if summary["rows"][0][part["name"]]["sizes"] else ()
    head = ["Backbone", *map(title, part["columns"]), *sizes, f"Gain in {title(main)}", "Relative"]
    body = []
    for row in summary["rows"]:
        gain = row["gain"].get(main)
        body.append(
            [
                row["label"] + (" (baseline)" if row["label"] == summary["baseline"] else ""),
                interval(row[main]),
                *(percent(row[name]["value"]) for name in part["columns"][1:]),
                *(percent(row[part["name"]]["sizes"][size]) for size in sizes),
                interval(gain["absolute"], signed) if gain else NONE,
                relative(gain["relative"]) if gain else NONE,
            ]
        )
    return lined(head, body)


def _errors(summary: dict[str, Any], part: dict[str, Any]) -> list[str]:
    base, body = summary["baseline"], []
    for row in summary["rows"]:
        own = row[part["name"]]["errors"].values()
        body.append([row["label"], *(interval(one["cost"]) for one in own)])
        if row["label"] != base:
            body.append([f"{row['label']} less {base}", *(interval(one["difference"], signed) for one in own)])
    return lined(["Backbone", *summary["rows"][0][part["name"]]["errors"]], body)


def _varies(summary: dict[str, Any], part: dict[str, Any]) -> list[str]:
    head = ["Backbone", "Trainings", "Pretrainings, std", "Fine-tunings, std", "Gain, other images"]
    half = summary["intervals"]["half_width"]
    head += ["Other trainings", "Both", f"±{percent(half)} takes"]
    body = []
    for row in summary["rows"]:
        gain, spread = row["gain"].get(part["main"]), row["spread"].get(part["main"], {})
        parts = [between(gain["absolute"], of) for of in ("images", "trainings", "joint")] if gain else [NONE] * 3
        body.append(
            [
                row["label"],
                trained(row),
                percent(spread.get("pretraining")),
                percent(spread.get("finetuning")),
                *parts,
                needed(gain, half) if gain else NONE,
            ]
        )
    return lined(head, body)
