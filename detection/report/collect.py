"""From the runs of a comparison to its report. Everything in it comes from the runs' own files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from backbone.errors import BadImage, UserError
from backbone.options import net_options
from backbone.storage import filesystem, join
from backbone.training.recipe import flat, identity
from backbone.training.run import run_url
from backbone.training.schedule import in_steps
from backbone.training.state import training_seconds
from detection.data.contract import DetectionSource
from detection.data.options import DetectionData, ScenesData, VocData
from detection.data.sources import open_val
from detection.forecast import works
from detection.gains import Plan, Training
from detection.gains_recipe import FULL, LAST, Gains
from detection.recipe import Finetune
from detection.report import ladder, several, summary
from detection.report.ladder import Rung
from detection.report.markdown import to_markdown
from detection.report.measures import Main
from detection.report.ways import judge

OF_A_RUN = ("name", "backbone", "seed", "from_scratch", "run")
"""Fields of the fine-tuning recipe that differ between the rows."""
IN_COLUMNS = (
    "backbone",
    "seed",
    "from_scratch",
    "detector.norm",
    "detector.freeze_at",
    "schedule.total",
    "optim.micro_batch",
)
"""Fields that the report's tables tell by columns of their own."""
NORMS = {"trainable": "batch"}
"""What `detector.norm` is called where it does not say what the norms are."""


class TooFew(UserError):
    """Results are missing, so that there is nothing to compare."""


def write_report(gains: Gains, todo: Plan, command: str, failed: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Write the report of finished runs into `<storage>/<name>`; returns its folder and its text as Markdown.

    Of several fine-tuning recipes a report each, in folders of their names, and above them one of their orders.

    Args:
        command: what makes it again.
        failed: as `gains.run` returns it. These runs are left out and named, whatever lies in their folders.

    Raises:
        UserError: another run's results are missing or do not fit together, or too few are left to compare.
    """
    failed, folder = failed or {}, join(gains.storage, gains.name)
    if isinstance(gains.finetune, dict):
        return folder, _several(gains, todo, command, failed, folder)
    report, image = _report(gains, todo.of(LAST), command, failed)
    if gains.ladder:
        report = replace(report, ladder=_ladder(gains, todo, failed))
    return folder, to_markdown(summary.write(folder, report, image, gains.resamples))


def _report(
    gains: Gains, todo: Plan, command: str, failed: Mapping[str, str], of: str = ""
) -> tuple[summary.GainsReport, Callable[[int], np.ndarray]]:
    """Of the one block that `todo` has, and what gives the pictures of its images."""
    rows = [row for label in gains.rows if (row := _row(gains, todo, label, failed))]
    every = {**todo.pretrainings, **todo.finetunings}
    missing = [
        summary.Missing(key.label, recipe.run_name, failed[short])
        for key, recipe in every.items()
        if (short := gains.short(recipe.run_name)) in failed
    ]
    labels = [row.label for row in rows]
    if gains.baseline not in labels or len(labels) < 2:
        left = f"{', '.join(labels)} alone" if labels else "no row"
        why = "\n".join(f"{gains.short(one.run)}: {one.why}" for one in missing)
        raise TooFew(f"{why}\nno report: there are results of {left}, the baseline being {gains.baseline}")
    first = next(iter(todo.tuned(gains.baseline).values()))
    place = "" if isinstance(first.data, ScenesData) else f" {first.data.val}"
    source = open_val(first.data, first.semantic)
    metrics = next(row for row in rows if row.label == gains.baseline).trainings[0].metrics
    made_by = metrics["provenance"]
    report = summary.GainsReport(
        title=f"What is a backbone worth? {gains.name}{f', {of}' if of else ''}",
        baseline=gains.baseline,
        rows=tuple(rows),
        recipe={field: value for field, value in made_by["recipe"].items() if field not in OF_A_RUN},
        data={
            "validation": first.data.source + place,
            "images": metrics["images"],
            "training images": made_by["train_images"],
            "fingerprint": made_by["data"]["val"],
        },
        environment={
            "precision": _precision(rows),
            **{key: made_by[key] for key in ("hardware", "versions", "git", "created")},
        },
        command=command,
        main=main_measure(first.data, first.semantic),
        half_width=gains.half_width / 100,
        missing=tuple(missing),
    )
    return report, pictures_of(source)


def pictures_of(source: DetectionSource) -> Callable[[int], np.ndarray]:
    """What gives an image by its id; black, as the net was shown it, where it cannot be read (data.on_bad skip)."""
    index = {image_id: i for i, image_id in enumerate(source.image_ids.tolist())}

    def image(image_id: int) -> np.ndarray:
        i = index[image_id]
        try:
            return source.image(i)
        except BadImage:
            return np.zeros((*source.sizes[i].tolist(), 3), np.uint8)

    return image


def _ladder(gains: Gains, todo: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """The rungs that have results, the last of them that of the report."""
    rungs, left_out, missing = [], {}, []
    there = {key: one for key, one in todo.finetunings.items() if gains.short(one.run_name) not in failed}
    work = works(todo._replace(finetunings=there))
    for block in gains.blocks:
        own = todo.of(block)
        rows = tuple(row for label in gains.rows if (row := _row(gains, own, label, failed)))
        if not rows:
            left_out[block] = next((failed[n] for n in map(gains.short, own.names()) if n in failed), "it has no row")
            continue
        if block != LAST:  # those of the last are the report's
            lost = [name for one in own.finetunings.values() if (name := gains.short(one.run_name)) in failed]
            missing += [f"Rung {block} is without {name}: {failed[name]}" for name in lost]
        labels = [row.label for row in rows]
        first = next(iter(own.tuned(labels[0]).values()))
        rungs.append(
            Rung(
                name=block or FULL,
                changes=flat(gains.ladder.get(block, {})),
                rows=rows,
                labels=first.data.share,
                seconds={row.label: _seconds(gains, own, row.label, failed) / len(row.trainings) for row in rows},
                work={
                    row.label: None if (total := work.get((block, row.label))) is None else total / len(row.trainings)
                    for row in rows
                },
                main=main_measure(first.data, first.semantic),
                validation=rows[0].trainings[0].metrics["provenance"]["data"]["val"],
            )
        )
    return ladder.to_json(rungs, left_out, gains.baseline, missing, gains.resamples)


def _several(gains: Gains, todo: Plan, command: str, failed: Mapping[str, str], folder: str) -> str:
    """A report for each recipe, and one of their orders; returns the latter as Markdown."""
    told, judged, left_out = {}, {}, {}
    for block in gains.blocks:
        try:
            report, image = _report(gains, todo.of(block), command, failed, block)
        except TooFew as error:
            left_out[block] = str(error)
            continue
        told[block] = summary.write(join(folder, block), report, image, gains.resamples)
        judged[block] = judge(report.rows, report.main, report.data["fingerprint"], gains.resamples)[0]
    if not told:
        raise TooFew("\n".join(f"{block}: {why}" for block, why in left_out.items()))
    return several.write(folder, f"What is a backbone worth? {gains.name}", told, judged, left_out, command)


def _left(gains: Gains, todo: Plan, label: str, failed: Mapping[str, str]) -> dict[Training, Finetune]:
    """A row's fine-tunings that have not failed."""
    return {key: recipe for key, recipe in todo.tuned(label).items() if gains.short(recipe.run_name) not in failed}


def _row(gains: Gains, todo: Plan, label: str, failed: Mapping[str, str]) -> summary.Row | None:
    """A row of what has not failed; None where nothing is left."""
    runs = _left(gains, todo, label, failed)
    if not runs:
        return None
    trainings = tuple(
        summary.Training.read(
            join(run_url(recipe), "results"), recipe.seed, key.pretraining.seed if key.pretraining else None
        )
        for key, recipe in runs.items()
    )
    seconds = [training_seconds(_history(recipe), recipe.optim.batch) for recipe in runs.values()]
    made_by = [one.metrics["provenance"] for one in trainings]
    backbone, scratch = made_by[0]["backbone"], bool(gains.rows[label].scratch)
    net = net_options(backbone["net"])
    own = next(iter(runs.values()))
    return summary.Row(
        label=label,
        net=net.called,
        pretrained=None if scratch else _pretrained_on(backbone["provenance"]),
        params=made_by[0]["cost"]["parameters"],
        macs=made_by[0]["cost"]["backbone_macs"],
        train_seconds=sum(seconds) / len(seconds),
        pretrain={} if scratch else _accuracy([one["backbone"] for one in made_by]),
        trainings=trainings,
        regime=_regime(made_by[0], own, next(iter(todo.tuned(gains.baseline).values()), own)),
    )


def best_backbone(gains: Gains, todo: Plan, folder: str, failed: Mapping[str, str]) -> tuple[str, str]:
    """The artifact of the pretrained row with the highest value in the report (of several detectors the first one's),
    and a framework that can have its net; both empty where no such row has results."""
    from backbone.artifact import read_config
    from backbone.interop.export import able

    fs, path = filesystem(join(folder, "report.json"))
    report = json.loads(fs.cat_file(path))
    report = next(iter(report["blocks"].values())) if "blocks" in report else report
    main = report["parts"][0]["main"]
    rows = [row for row in report["rows"] if row["pretrained"] is not None]
    if not rows:
        return "", ""
    best = max(rows, key=lambda row: row[main]["value"] or 0)
    place = next(iter(_left(gains, todo, best["label"], failed).values())).backbone
    return place, able(net_options(read_config(place)["raybone"]["net"]))[0]


def main_measure(data: DetectionData, semantic: bool = False) -> Main:
    """What validation data are judged by: pixels by mIoU, VOC's layout by VOC's mAP, at 11 points where its folders are
    called VOC2007 as the devkit's is, and all else by COCO's AP."""
    if semantic:
        return "mIoU"
    if not isinstance(data, VocData):
        return "AP"
    folders = [part.strip().rpartition(":")[0].rstrip("/") for part in data.val.split(",")]
    return "mAP07" if all(folder.rpartition("/")[2] == "VOC2007" for folder in folders) else "mAP"


def _regime(made_by: dict[str, Any], recipe: Finetune, base: Finetune) -> summary.Regime:
    detector, norm = recipe.detector, made_by["backbone"]["net"]["norm"]
    own, other = ({**one.LATER, **identity(one)} for one in (recipe, base))
    return summary.Regime(
        norms="none" if norm == "none" else NORMS.get(detector.norm, detector.norm),
        fixed_parts=detector.freeze_at,
        steps=_scheduled(made_by, recipe),
        micro_batch=made_by["recipe"]["optim"]["micro_batch"],
        otherwise={field: own[field] for field in own if own[field] != other.get(field) and field not in IN_COLUMNS},
    )


def _scheduled(made_by: dict[str, Any], recipe: Finetune) -> int:
    """Steps that a detector was trained for, which may be more than those of the best one that was kept."""
    images = made_by.get("train_images")
    return in_steps(recipe.schedule, recipe.optim.batch, images).total if images else made_by["steps"]


def _precision(rows: list[summary.Row]) -> str:
    """What the detectors were trained in, and whose differ where not all are alike."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for one in row.trainings:
            found.setdefault(one.metrics["provenance"]["recipe"]["compute"]["precision"], []).append(row.label)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{precision}: {', '.join(dict.fromkeys(labels))}" for precision, labels in found.items())


def _pretrained_on(provenance: dict[str, Any]) -> str:
    """What a report says of a backbone's origin: data and images where trained here, the file where imported."""
    told = []
    data = provenance.get("recipe", {}).get("data", {})
    if data:
        place = f" {data['train']}" if data.get("train") else ""
        told.append(f"{data.get('source', 'unknown')}{place}, {provenance.get('train_images', 0):,} images")
    imported = provenance.get("imported")
    if imported:  # of one that was exported here once, the recipe is known as well
        told.append(f"imported from {imported['source']}: {imported['file']}")
    return "; ".join(told) or "unknown"


def _accuracy(backbones: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the backbones, each counted once."""
    once = {one["weights_sha256"]: one["provenance"].get("metrics", {}) for one in backbones}
    errors = [metrics["val_error"] for metrics in once.values() if "val_error" in metrics]
    return {"top-1": 1 - sum(errors) / len(errors) / 100} if errors else {}


def _history(recipe: Finetune) -> list[dict[str, Any]]:
    fs, path = filesystem(run_url(recipe))
    return json.loads(fs.cat_file(join(path, "history.json")))


def _seconds(gains: Gains, todo: Plan, label: str, failed: Mapping[str, str]) -> float:
    """Training and validation, all fine-tunings of a row."""
    total = 0.0
    for recipe in _left(gains, todo, label, failed).values():
        history = _history(recipe)
        total += training_seconds(history, recipe.optim.batch) + sum(one.get("val_seconds", 0.0) for one in history)
    return total
