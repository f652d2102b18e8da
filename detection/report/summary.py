"""The gains report: what each backbone is worth under one detector recipe, as JSON, Markdown and one HTML page.

The JSON holds every number; Markdown and HTML are made from it and from nothing else.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backbone.errors import UserError
from backbone.storage import filesystem, join
from detection.report import page, paper
from detection.report.bootstrap import (
    METRICS,
    Gain,
    Interval,
    Matches,
    RowStatistics,
    average_precision,
    paired_bootstrap,
    precision_recall,
)
from detection.report.pictures import Detected, gallery
from detection.report.wording import headlines, interval, minutes, percent, quantity, signed

SIZES = ("APs", "APm", "APl")
COVERS = (
    "95 % intervals by a bootstrap over the test images, the same draw for every row: what other images would show of "
    "these trained detectors. What another training seed would change is not in them; the spread over seeds is apart."
)


@dataclass(frozen=True)
class SeedResult:
    """One fine-tuned detector, judged. `metrics` is its metrics.json; `results` the folder or URL it lies in."""

    seed: int
    metrics: dict[str, Any]
    matches: Matches
    results: str

    @classmethod
    def read(cls, results: str, seed: int) -> "SeedResult":
        """Read `metrics.json` and `matches.npz` of a results folder, local or remote.

        Raises:
            UserError: one is missing or damaged, or they disagree on AP.
        """
        metrics = _read_json(join(results, "metrics.json"))
        return cls(seed, metrics, Matches.load(join(results, "matches.npz")), results)


@dataclass(frozen=True)
class Row:
    """One backbone under the detector recipe, one or more seeds."""

    label: str
    net: str
    pretrained: str | None
    """The data it was pretrained on; None: from scratch."""

    params: int
    """Of the detector with this backbone."""

    macs: float
    """Multiply-adds of the backbone on one image."""

    train_seconds: float
    """Fine-tuning, wall clock, mean over seeds."""

    pretrain: dict[str, float]
    """Metrics of the pretraining, fractions, such as {"top1": 0.93}; empty from scratch."""

    seeds: tuple[SeedResult, ...]


@dataclass(frozen=True)
class Report:
    """All that a report tells. Dicts are shown as they are, keys in order; they must be JSON."""

    title: str
    baseline: str
    rows: tuple[Row, ...]
    recipe: dict[str, Any]
    data: dict[str, Any]
    """fingerprint, images, source and what else the data say of themselves."""

    environment: dict[str, Any]
    """hardware, versions, git revision, date, and what else says where the numbers come from."""

    command: str
    """What makes this report again."""


def to_json(report: Report, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every number of the report. AP and the like are fractions, the paper's numbers percent as printed; null: none.

    Raises:
        UserError: labels repeat, the baseline is no row, a row has no seeds, rows were judged on different images, or a
            metrics.json does not belong to its matches.npz.
    """
    labels = [row.label for row in report.rows]
    if len(set(labels)) < len(labels):
        raise UserError(f"two rows share a label: {', '.join(labels)}; give each its own")
    statistics = paired_bootstrap(
        {row.label: [s.matches for s in row.seeds] for row in report.rows}, report.baseline, resamples, seed
    )
    rows = [_row(row, statistics[row.label]) for row in report.rows]
    return _finite(
        {
            "format": 1,
            "title": report.title,
            "baseline": report.baseline,
            "classes": list(report.rows[0].seeds[0].metrics["bbox"]["per_class"]),
            "rows": rows,
            "intervals": {"resamples": resamples, "seed": seed, "confidence": 0.95, "covers": COVERS},
            "recall": np.linspace(0, 1, 101).round(2).tolist(),
            "paper": [asdict(g) | {"absolute": g.absolute, "relative": g.relative} for g in paper.GAINS],
            "recipe": report.recipe,
            "data": report.data,
            "environment": report.environment,
            "command": report.command,
        }
    )


def to_markdown(summary: dict[str, Any]) -> str:
    """`to_json`'s dict as Markdown: tables for a README or a pull request."""
    rows, base = summary["rows"], summary["baseline"]
    lines = [f"# {_cell(summary['title'])}", ""]
    lines += [f"- {_cell(line)}" for line in headlines(summary)]
    lines += ["", summary["intervals"]["covers"], ""]
    head = ["Backbone", "AP", "AP50", "AP75", *SIZES, "Gain in AP", "Relative", "Seeds", "Spread (std)"]
    body = []
    for row in rows:
        gain, spread = row["gain"].get("AP"), row["spread"].get("AP")
        body.append(
            [
                row["label"] + (" (baseline)" if row["label"] == base else ""),
                interval(row["AP"]),
                *(percent(row[m]["value"]) for m in METRICS[1:]),
                *(percent(row["sizes"][m]) for m in SIZES),
                interval(gain["absolute"], signed) if gain else "–",
                interval(gain["relative"], lambda v: f"{signed(v, 0)}\u00a0%") if gain and gain["relative"] else "–",
                str(len(row["seeds"])),
                percent(spread["std"]) if spread else "–",
            ]
        )
    lines += [*_table(head, body), ""]
    if any(row["segm"] for row in rows):
        body = [[row["label"], *(percent((row["segm"] or {}).get(m)) for m in METRICS)] for row in rows]
        lines += ["Masks, mean over seeds:", "", *_table(["Backbone", *METRICS], body), ""]
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


def write(
    url: str,
    report: Report,
    image: Callable[[int], np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `report.html` into the folder `url`, local or remote; return the JSON.

    Args:
        image: gives uint8 [H, W, 3] RGB of a COCO image id, for the page's pictures; None leaves them out.

    Raises:
        UserError: as `to_json`, or a row's detections.json or ground_truth.json cannot be read.
    """
    summary = to_json(report, resamples, seed)
    pictures = None
    if image is not None:
        best = max(report.rows, key=lambda row: _mean_ap(summary, row.label))
        shown = [row for row in report.rows if row.label == report.baseline or row is best]
        judged = [
            Detected(row.label, _read_json(join(row.seeds[0].results, "detections.json")), row.seeds[0].seed)
            for row in sorted(shown, key=lambda row: row.label != report.baseline)
        ]
        pictures = gallery(_read_json(join(shown[0].seeds[0].results, "ground_truth.json")), judged, image)
    files = {
        "report.json": json.dumps(summary, indent=1, allow_nan=False),
        "report.md": to_markdown(summary),
        "report.html": page.to_html(summary, pictures),
    }
    fs, folder = filesystem(url)
    fs.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with fs.open(f"{folder}/{name}", "wb") as file:
            file.write(text.encode())
    return summary


def _row(row: Row, statistics: RowStatistics) -> dict[str, Any]:
    for result in row.seeds:
        own = average_precision(result.matches).AP
        said = result.metrics["bbox"]["AP"]
        if said is not None and abs(own - said) > 1e-4:
            raise UserError(
                f"{result.results}: metrics.json says AP {said:.4f}, matches.npz gives {own:.4f}; evaluate it again"
            )
    boxes = [s.metrics["bbox"] for s in row.seeds]
    masks = [s.metrics["segm"] for s in row.seeds if s.metrics.get("segm")]
    curves = []
    for result in row.seeds:
        precision = precision_recall(result.matches)[1]
        curves.append(precision[~np.isnan(precision).any(1)].mean(0))
    return {
        "label": row.label,
        "net": row.net,
        "pretrained": row.pretrained,
        "pretrain": row.pretrain,
        "params": row.params,
        "macs": row.macs,
        "train_seconds": row.train_seconds,
        **{metric: asdict(statistics.mean[metric]) for metric in METRICS},
        "sizes": {size: _mean([b[size] for b in boxes]) for size in SIZES},
        "segm": {metric: _mean([m[metric] for m in masks]) for metric in (*METRICS, *SIZES)} if masks else None,
        "gain": {metric: _gain(gain) for metric, gain in statistics.gain.items()},
        "spread": {metric: asdict(spread) for metric, spread in statistics.spread.items()},
        "per_class": {
            name: {
                "AP": _mean([b["per_class"][name]["AP"] for b in boxes]),
                "AP50": _mean([b["per_class"][name]["AP50"] for b in boxes]),
                "objects": one["objects"],
            }
            for name, one in boxes[0]["per_class"].items()
        },
        "curve": np.mean(curves, axis=0).tolist(),
        "seeds": [
            {
                "seed": s.seed,
                **{metric: s.metrics["bbox"][metric] for metric in METRICS},
                "notes": s.metrics.get("notes", []),
                "provenance": s.metrics.get("provenance", {}),
                "results": s.results,
            }
            for s in row.seeds
        ],
    }


def _gain(gain: Gain) -> dict[str, Any]:
    def told(part: Interval) -> dict[str, Any]:
        return asdict(part) | {"includes_zero": part.includes_zero}

    return {"absolute": told(gain.absolute), "relative": told(gain.relative) if gain.relative else None}


def _mean(values: list[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None


def _mean_ap(summary: dict[str, Any], label: str) -> float:
    value = next(row["AP"]["value"] for row in summary["rows"] if row["label"] == label)
    return -1.0 if value is None else value


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead, all the way down."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _read_json(url: str) -> Any:
    fs, path = filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {url} ({error}); evaluate the detector again") from error


def _cell(value: Any) -> str:
    """Text that neither ends a table cell nor becomes a tag."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]
