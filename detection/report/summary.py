"""The gains report: what each backbone is worth under one detector recipe, as JSON, Markdown and one HTML page.

The JSON holds every number; Markdown (`markdown`) and HTML (`page`) are made from it and from nothing else.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backbone.errors import UserError
from backbone.storage import filesystem, join
from detection.pixels import Pixels
from detection.report import intervals, ladder_chart, markdown, page, paper
from detection.report.bootstrap import RECALLS, precision_recall
from detection.report.compare import RowStatistics, Scored, compare
from detection.report.errors import KINDS
from detection.report.measures import METRICS, Main, Part, parts
from detection.report.pictures import BUDGET, Detected, Gallery, gallery
from detection.report.segments import without_ignored
from detection.report.stored import Kind, Matches, load, load_pixels
from detection.report.wording import SIZES, covers, described


@dataclass(frozen=True)
class Training:
    """One fine-tuned detector, judged. `metrics` is its metrics.json; `results` the folder or URL it lies in."""

    seed: int
    pretrain_seed: int | None
    """What its backbone was pretrained with here; None of a backbone that was given, or never pretrained."""

    metrics: dict[str, Any]
    matches: Mapping[Kind, Matches | Pixels]
    results: str

    @classmethod
    def read(cls, results: str, seed: int, pretrain_seed: int | None = None) -> "Training":
        """Read `metrics.json` and `matches.npz` of a results folder, local or remote.

        Raises:
            UserError: one is missing or damaged, or they disagree on AP.
        """
        metrics = _read_json(join(results, "metrics.json"))
        matches = {"semantic": load_pixels(results)} if "semantic" in metrics else load(results, "segm" in metrics)
        return cls(seed, pretrain_seed, metrics, matches, results)


@dataclass(frozen=True)
class Missing:
    """A training that was asked for and has no results."""

    label: str
    run: str
    why: str


@dataclass(frozen=True)
class Regime:
    """What rows may differ in beside their backbone."""

    norms: str
    """What its norms are while the detector trains: frozen, batch, sync, group, none."""

    fixed_parts: int
    """From the image up: 1 the stem, 2 also C2."""

    steps: int
    micro_batch: int
    """Images that go through the net at once."""

    otherwise: dict[str, Any]
    """Other fields of the recipe that the baseline's has not so."""


@dataclass(frozen=True)
class Row:
    """One backbone under the detector recipe, one or more trainings."""

    label: str
    net: str
    pretrained: str | None
    """The data it was pretrained on; None: from scratch."""

    params: int
    """Of the detector with this backbone."""

    macs: float
    """Multiply-adds of the backbone on one image."""

    train_seconds: float
    """Fine-tuning, wall clock, mean over trainings."""

    pretrain: dict[str, float]
    """Metrics of the pretraining, fractions, such as {"top1": 0.93}, means over pretrainings; empty from scratch."""

    trainings: tuple[Training, ...]
    regime: Regime


@dataclass(frozen=True)
class GainsReport:
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

    main: Main = "AP"
    """What gains and headline are of."""

    half_width: float = 0.01
    """Wanted of a gain's interval, a fraction: the report says how many trainings it takes."""

    missing: tuple[Missing, ...] = ()

    ladder: dict[str, Any] | None = None
    """What `detection.report.ladder.to_json` says of the rungs, the last of which this report is of."""


def to_json(report: GainsReport, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every number of the report. AP and the like are fractions, the paper's numbers percent as printed; null: none.

    Raises:
        UserError: labels repeat, the baseline is no row, a row has no training, rows were judged on different images,
            or a metrics.json does not belong to its matches.npz.
    """
    labels = [row.label for row in report.rows]
    if len(set(labels)) < len(labels):
        raise UserError(f"two rows share a label: {', '.join(labels)}; give each its own")
    told = parts(report.main, all("segm" in t.matches for row in report.rows for t in row.trainings))
    statistics = compare(
        {row.label: [Scored(t.matches, t.pretrain_seed) for t in row.trainings] for row in report.rows},
        report.baseline,
        resamples,
        seed,
        report.half_width,
        [measure for part in told for measure in (*part.measures, part.errors) if measure],
    )
    rows = [_row(row, statistics[row.label], told) for row in report.rows]
    return _finite(
        {
            "format": 3,
            "title": report.title,
            "baseline": report.baseline,
            "parts": [
                {
                    "name": part.name,
                    "main": part.main,
                    "columns": list(part.columns),
                    "measure": described(part.main),
                    "of_class": part.of_class,
                    "counted": part.counted,
                }
                for part in told
            ],
            "classes": list(_classes(report.rows[0].trainings[0].metrics)),
            "rows": rows,
            "missing": [asdict(one) for one in report.missing],
            "intervals": {
                "resamples": resamples,
                "seed": seed,
                "confidence": intervals.CONFIDENCE,
                "half_width": report.half_width,
                "covers": covers(rows),
            },
            "recall": RECALLS.round(2).tolist(),
            "paper": [
                asdict(g) | {"absolute": g.absolute, "relative": g.relative}
                for g in paper.of(told[0].columns if report.main == "AP" else (report.main,))
            ],
            "recipe": report.recipe,
            "data": report.data,
            "environment": report.environment,
            "command": report.command,
            **({"ladder": report.ladder} if report.ladder else {}),
        }
    )


def write(
    url: str,
    report: GainsReport,
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
    pictures: dict[str, Gallery] = {}
    if image is not None:
        values = {row["label"]: row[report.main]["value"] for row in summary["rows"]}
        best = max(report.rows, key=lambda row: -1.0 if values[row.label] is None else values[row.label])
        shown = [row for row in report.rows if row.label == report.baseline or row is best]
        judged = [
            Detected(row.label, _read_json(join(row.trainings[0].results, "detections.json")), row.trainings[0].seed)
            for row in sorted(shown, key=lambda row: row.label != report.baseline)
        ]
        truth = _read_json(join(shown[0].trainings[0].results, "ground_truth.json"))
        if report.main == "mIoU":
            truth, judged = without_ignored(truth, judged)
        names = [part["name"] for part in summary["parts"]]
        pictures = {
            name: gallery(
                truth,
                judged,
                image,
                masks=name != "boxes",
                budget=BUDGET // len(names),
                regions=name == "pixels",
            )
            for name in names
        }
    files = {
        "report.json": json.dumps(summary, indent=1, allow_nan=False),
        "report.md": markdown.to_markdown(summary),
        "report.html": page.to_html(summary, pictures),
    }
    fs, folder = filesystem(url)
    fs.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with fs.open(f"{folder}/{name}", "wb") as file:
            file.write(text.encode())
    if report.ladder:
        fs.pipe_file(f"{folder}/ladder.png", ladder_chart.draw(summary["ladder"]))
    return summary


def _row(row: Row, statistics: RowStatistics, told: Sequence[Part]) -> dict[str, Any]:
    for part in told:
        for one in row.trainings:
            _check(one, part)
    shares = _shares(row)
    metrics = [name for part in told for name in part.columns]
    return {
        "label": row.label,
        "net": row.net,
        "pretrained": row.pretrained,
        "pretrain": row.pretrain,
        "params": row.params,
        "macs": row.macs,
        "train_seconds": row.train_seconds,
        "regime": asdict(row.regime),
        **{metric: asdict(statistics.mean[metric]) for metric in metrics},
        "gain": {metric: asdict(statistics.gain[metric]) for metric in metrics if statistics.gain},
        "spread": {metric: asdict(statistics.spread[metric]) for metric in metrics if statistics.spread},
        "independent": statistics.independent,
        "pretrainings": 0 if row.pretrained is None else len({t.pretrain_seed for t in row.trainings}),
        **{part.name: _part(row, part, shares) | _errors(statistics, part) for part in told},
        "trainings": [
            {
                "seed": t.seed,
                "pretrain_seed": t.pretrain_seed,
                **{name: t.metrics[METRICS[name].section][METRICS[name].key] for name in metrics},
                "notes": t.metrics.get("notes", []),
                "provenance": t.metrics.get("provenance", {}),
                "results": t.results,
            }
            for t in row.trainings
        ],
    }


def _part(row: Row, part: Part, shares: Sequence[float]) -> dict[str, Any]:
    """Sizes, classes and curve of a part, means over the trainings; of pixels classes alone."""
    main, columns = METRICS[part.main], [METRICS[name] for name in part.columns]
    sized = [t.metrics[columns[-1].section] for t in row.trainings]
    by_class = [t.metrics[main.section]["per_class"] for t in row.trainings]
    objects = _classes(row.trainings[0].metrics)
    per_class = {
        name: {
            part.of_class: _mean([classes[name][main.per_class] for classes in by_class], shares),
            part.counted: objects[name][part.counted],
        }
        for name in objects
    }
    curves = []
    for one in row.trainings:
        matches = one.matches[part.measures[0].kind]
        if isinstance(matches, Pixels):
            return {"sizes": {}, "per_class": per_class}
        precision = precision_recall(matches)[1]
        curves.append(precision[~np.isnan(precision).any(1)].mean(0))
    return {
        "sizes": {size: _mean([metrics[size] for metrics in sized], shares) for size in SIZES},
        "per_class": per_class,
        "curve": np.average(curves, axis=0, weights=shares).tolist(),
    }


def _classes(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What metrics.json says of each class, by name."""
    return metrics["semantic" if "semantic" in metrics else "bbox"]["per_class"]


def _errors(statistics: RowStatistics, part: Part) -> dict[str, Any]:
    """What each kind of error costs in AP50, and how much more than it costs the baseline; nothing of pixels."""
    if not part.errors:
        return {}
    costs = {
        kind: {
            "cost": asdict(statistics.mean[name]),
            "difference": asdict(statistics.gain[name].absolute) if statistics.gain else None,
        }
        for kind, name in zip(KINDS, part.errors.names, strict=True)
    }
    return {"errors": costs}


def _check(one: Training, part: Part) -> None:
    """UserError where metrics.json and matches.npz are not of the same evaluation."""
    for measure in part.measures:
        matches = one.matches[measure.kind]
        own = measure.of(matches, np.ones((len(matches.image_ids), 1)))[0, 0]
        metric = METRICS[measure.names[0]]
        said = one.metrics[metric.section][metric.key]
        if said is not None and abs(own - said) > 1e-4:
            raise UserError(
                f"{one.results}: metrics.json says {metric.title} {said:.4f}, matches.npz gives {own:.4f}; "
                "evaluate it again"
            )


def _mean(values: Sequence[float | None], shares: Sequence[float]) -> float | None:
    """Over the trainings that have the number, each with its share."""
    present = [(value, share) for value, share in zip(values, shares, strict=True) if value is not None]
    return sum(v * w for v, w in present) / sum(w for _, w in present) if present else None


def _shares(row: Row) -> list[float]:
    """How much each training counts in a mean: pretrainings alike, and alike the fine-tunings of each."""
    seeds = [t.pretrain_seed for t in row.trainings]
    return [1 / (len(set(seeds)) * seeds.count(seed)) for seed in seeds]


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
