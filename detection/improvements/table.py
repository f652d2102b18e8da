"""The cumulative table of a detection entry (arXiv:1512.03385, Table 9): what each step adds to the ones before it.

A step that only looks otherwise is judged on the same detectors as the row before, so its gain is a mean of
differences, one a training; one that trains anew is a difference of means; an ensemble is set beside the mean of its
members. Intervals are `detection.report`'s: they hold other images and other trainings, both.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from backbone.lease import lease
from backbone.provenance import environment
from backbone.storage import filesystem, join
from backbone.training.run import run_url
from detection.data.contract import DetectionSource
from detection.data.options import DetectionData
from detection.improvements.cost import Cost
from detection.improvements.entry import BASELINE, Entry, EntryStep, Plan, Row, place, plan
from detection.recipe import DetectorEvaluation
from detection.report import intervals
from detection.report.bootstrap import paired_draws
from detection.report.intervals import Interval
from detection.report.stored import Matches, load

METRICS = ("AP", "AP50", "AP75")
SHOWN = ("AP", "AP50")


class Published(NamedTuple):
    """A step's gain in the paper, points: COCO val, but the ensemble's of test-dev."""

    AP: float
    AP50: float


PAPER = {
    "box refinement": Published(2.7, 1.5),
    "context": Published(0.1, 1.2),
    "multi-scale testing": Published(2.5, 2.7),
    "ensemble": Published(2.5, 3.3),
}
"""Table 9, ResNet-101: 27.2/48.4 at first; 37.4/59.0 of the ensemble, which is trained on train and val."""


@dataclass(frozen=True)
class Gain:
    """Of a row over the one before, fractions."""

    value: float
    images: Interval | None
    """Other images, these very trainings."""

    joint: Interval | None
    """Other images and other trainings; None where a row has one training, or one ensemble."""

    @property
    def verdict(self) -> str:
        """By the joint interval alone."""
        if self.joint is None:
            return "unknown"
        return "more" if self.joint.low > 0 else "less" if self.joint.high < 0 else "no difference"


def paper_step(step: EntryStep) -> str:
    """Which of the paper's steps this is, and no more than that; "" where none."""
    asked = {field for field in EntryStep.model_fields if field != "label" and getattr(step, field)}
    if asked == {"train_with"}:
        return "context" if step.train_with == {"detector": {"context": True}} else ""
    alone = {"ensemble": {"ensemble"}, "box refinement": {"refine", "vote"}, "multi-scale testing": {"scales"}}
    asked -= {"maxout"} if "scales" in asked else set()  # the paper's way
    return next((name for name, fields in alone.items() if asked == fields), "")


def gains(row: np.ndarray, before: np.ndarray, paired: bool, num_images: int) -> Gain:
    """Of one metric: rows float [n, 1 + B], units of trainings, all images and B draws; `paired`: unit by unit."""
    if paired:
        parts, weights = [row - before], (1,)
    else:
        parts, weights = [row, before], (1, -1)
    drawn = row.mean(0) - before.mean(0)
    half, _ = intervals.margin(intervals.noise(parts, num_images), weights)
    value = float(drawn[0])
    images = intervals.of_images(drawn, -1, 1) if num_images > 1 else None
    return Gain(value, images, intervals.around(value, half, -1, 1))


def grouped(values: np.ndarray, seeds: Sequence[int], groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Values float [..., seeds, 1 + B] as means over groups of seeds, [..., groups, 1 + B]."""
    at = {seed: k for k, seed in enumerate(seeds)}
    return np.stack([values[..., [at[seed] for seed in group], :].mean(-2) for group in groups], -2)


def statistics(rows: Sequence[Row], matches: Mapping[str, Sequence[Matches]], resamples: int) -> list[dict[str, Any]]:
    """Each row's AP, AP50 and AP75 and their gains over the row before; `matches` by label, one a group of the row.

    Raises:
        UserError: rows were not judged on the same images and objects.
    """
    draws = paired_draws(matches, resamples)
    num_images = len(matches[rows[0].label][0].image_ids)
    told: list[dict[str, Any]] = []
    for k, row in enumerate(rows):
        own = draws[row.label]
        found: dict[str, Any] = {"label": row.label, "trainings": len(own[0]), "mean": {}, "gain": {}}
        for i, metric in enumerate(METRICS):
            found["mean"][metric] = float(own[i, :, 0].mean())
            if k:
                before, previous = draws[rows[k - 1].label][i], rows[k - 1]
                paired = row.trained == previous.trained
                if paired and row.groups != previous.groups:
                    seeds = [seed for group in previous.groups for seed in group]
                    before = grouped(before, seeds, row.groups)
                found["gain"][metric] = gains(own[i], before, paired, num_images)
        told.append(found)
    return told


def run(entry: Entry, say: Callable[[str], None] = tqdm.write) -> tuple[str, str]:
    """Train and judge what is not there yet, measure costs, write the table; returns its folder and its text.

    Raises:
        UserError: a mistake in a recipe, data or an artifact, or another process at it.
    """
    from backbone.job import submit_all
    from detection.data.sources import open_sources, open_val
    from detection.evaluate import prepare
    from detection.finetune import FINETUNE, build_detector, check_ground_truth, load_backbone

    todo = plan(entry)
    url = place(entry)
    for training in todo.trainings:  # a mistake in any of them is told before Ray starts and the first one trains
        left = [recipe for recipe in training.values() if FINETUNE.finished(run_url(recipe)) is None]
        for recipe in left[:1]:
            net, _, _ = load_backbone(recipe)
            train, val = open_sources(recipe.data)
            check_ground_truth(val)
            build_detector(recipe, net, train)
    with lease(url, "made", say=say):
        submit_all(FINETUNE, [recipe for training in todo.trainings for recipe in training.values()], say)
        data = {row.label: prepare(row.evaluations[0], lambda text: None).options.data for row in todo.rows}
        source = open_val(data[todo.rows[0].label])
        for row in todo.rows:
            for recipe in row.evaluations:
                own = open_val(data[row.label]).fingerprint
                _evaluate(recipe, own, lambda text, of=row.label: say(f"[{of}] {text}"))
        matches = {row.label: [load(one.output)["bbox"] for one in row.evaluations] for row in todo.rows}
        told = statistics(todo.rows, matches, entry.resamples)
        say("measuring what each row costs")
        spent = _costs(entry, todo, source, data)
        text = markdown(entry, told, spent)
        record = {
            "rows": [
                {
                    **one,
                    "gain": {name: {**asdict(gain), "verdict": gain.verdict} for name, gain in one["gain"].items()},
                    "cost": asdict(spent[one["label"]]),
                }
                for one in told
            ],
            "paper": {name: published._asdict() for name, published in PAPER.items()},
            "entry": entry.model_dump(mode="json"),
            "provenance": environment(),
        }
        fs, path = filesystem(url)
        fs.pipe_file(join(path, "table.md"), text.encode())
        fs.pipe_file(join(path, "table.json"), (json.dumps(record, indent=2) + "\n").encode())
    return url, text


def _evaluate(recipe: DetectorEvaluation, data: str, say: Callable[[str], None]) -> None:
    """Unless it has been done with these very options, weights and data, of this fingerprint."""
    from backbone.job import submit
    from detection import artifact
    from detection.evaluate import EVALUATE

    weights = [artifact.read_config(url)["raybone_detector"]["weights_sha256"] for url in recipe.detector]
    asked = {"options": recipe.model_dump(mode="json", exclude={"scaling"}), "weights": weights, "data": data}
    fs, path = filesystem(recipe.output)
    mark = join(path, "asked.json")
    if fs.exists(mark) and json.loads(fs.cat_file(mark)) == asked:
        return
    say(f"judging {recipe.output}")
    if fs.exists(mark):  # what it vouches for is about to be replaced
        fs.rm_file(mark)
    submit(EVALUATE, recipe, say=say)
    fs.pipe_file(mark, json.dumps(asked, indent=2).encode())


def _costs(entry: Entry, todo: Plan, source: DetectionSource, data: Mapping[str, DetectionData]) -> dict[str, Cost]:
    from detection import artifact
    from detection.improvements.cost import Way, costs
    from detection.improvements.steps import Steps

    loaded: dict[str, Any] = {}
    ways = {}
    for row in todo.rows:
        recipe = row.evaluations[0]
        for url in recipe.detector:
            if url not in loaded:
                loaded[url] = artifact.load(url)
        steps = Steps(recipe.refine, recipe.vote, recipe.flip, recipe.maxout)
        ways[row.label] = Way(tuple(loaded[url] for url in recipe.detector), data[row.label], steps, recipe.scales)
    return costs(ways, source, entry.timed_images)


def markdown(entry: Entry, told: Sequence[dict[str, Any]], spent: Mapping[str, Cost]) -> str:
    """The table. Points of AP; gains over the row before, with 95 % intervals."""
    steps = {step.label: paper_step(step) for step in entry.steps}
    head = ["step", "trainings", "AP", "gain in AP", "AP50", "gain in AP50", "the paper's gains, AP / AP50"]
    head += ["ms an image", "times the baseline"]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for one in told:
        label, cost = one["label"], spent[one["label"]]
        cells = [label if label == BASELINE else f"+ {label}", str(one["trainings"])]
        for metric in SHOWN:
            cells += [f"{100 * one['mean'][metric]:.1f}", _gain(one["gain"].get(metric))]
        paper = PAPER.get(steps.get(label, ""))
        cells += [f"{paper.AP:+.1f} / {paper.AP50:+.1f}" if paper else "–"]
        middle, low, high = cost.times
        cells += [f"{1e3 * cost.seconds:.1f}", f"{middle:.1f} ({low:.1f}–{high:.1f})"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "In round brackets 95 % intervals that hold other images and other trainings, both; in square ones of other "
        "images alone, where a row has one training, and no verdict follows. The paper's are of COCO val with "
        "ResNet-101, the ensemble's of test-dev; costs are processor time, medians and quartiles of three turns.",
    ]
    return "\n".join(lines) + "\n"


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return ""
    if gain.joint:
        return f"{100 * gain.value:+.1f} ({100 * gain.joint.low:+.1f} to {100 * gain.joint.high:+.1f})"
    if gain.images:
        return f"{100 * gain.value:+.1f} [{100 * gain.images.low:+.1f} to {100 * gain.images.high:+.1f}]"
    return f"{100 * gain.value:+.1f}"
