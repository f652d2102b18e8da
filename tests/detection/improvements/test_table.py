"""The cumulative table: rows build on each other, gains are paired where trainings are the same, the numbers add up."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_1samp, ttest_ind

from backbone.cli import validate
from backbone.errors import UserError
from detection import scoring
from detection.improvements.cost import Way, costs
from detection.improvements.entry import Entry, plan
from detection.improvements.steps import Steps
from detection.improvements.table import _evaluate, gains, grouped, paper_step, run
from tests.detection.conftest import SMALL

STEPS: list[dict[str, Any]] = [
    {"label": "box refinement", "refine": True, "vote": True},
    {"label": "context", "train_with": {"detector": {"context": True}}},
    {"label": "multi-scale testing", "scales": [48, 64]},
    {"label": "ensemble", "ensemble": 2},
]


def entry(folder: Path, backbone: str, **changes: Any) -> Entry:
    recipe = {**SMALL, "schedule": {**SMALL["schedule"], "total": 6}}
    (folder / "detector.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k != "name"}))
    tree = {"name": "table", "finetune": str(folder / "detector.yaml"), "seeds": [0, 1], "steps": STEPS}
    tree |= {"backbone": backbone, "storage": str(folder / "runs"), "resamples": 100, "timed_images": 2}
    return validate(Entry, tree | changes, "test")


def test_each_row_has_all_that_those_before_it_have(tmp_path: Path) -> None:
    todo = plan(entry(tmp_path, "b"))
    assert [row.label for row in todo.rows] == ["baseline", *(step["label"] for step in STEPS)]
    steps = [row.evaluations[0].steps for row in todo.rows]
    refined = ["refine", "vote"]
    assert steps == [[], refined, refined, [*refined, "48", "64"], [*refined, "48", "64"]]
    assert [row.trained for row in todo.rows] == [0, 0, 1, 1, 1]
    assert [row.groups for row in todo.rows] == [((0,), (1,))] * 4 + [((0, 1),)]
    assert [len(one.detector) for one in todo.rows[-1].evaluations] == [2]
    plain, context = (training[1] for training in todo.trainings)
    assert (plain.detector.context, context.detector.context) == (False, True)
    assert (plain.run_name, context.run_name, context.seed) == ("table-seed1", "table-context-seed1", 1)


def test_seeds_make_as_many_ensembles_as_they_fill(tmp_path: Path) -> None:
    todo = plan(entry(tmp_path, "b", seeds=[0, 1, 2, 3, 4]))
    assert todo.rows[-1].groups == ((0, 1), (2, 3))


def test_the_papers_gain_stands_beside_its_own_step_alone(tmp_path: Path) -> None:
    told = entry(tmp_path, "b", steps=[*STEPS[:3], {"label": "all", "refine": True, "flip": True}])
    assert [paper_step(step) for step in told.steps] == ["box refinement", "context", "multi-scale testing", ""]
    assert paper_step(entry(tmp_path, "b").steps[-1]) == "ensemble"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, "give one at least"),
        ({"steps": [{"label": "x"}]}, "names nothing to do"),
        ({"steps": [STEPS[3], STEPS[0]]}, "an ensemble comes last"),
        ({"steps": [{"label": "e", "ensemble": 3}]}, "takes as many seeds; there are 2"),
        ({"steps": [STEPS[0], STEPS[0]]}, "give each another label"),
        ({"steps": [{"label": "a b", "refine": True}, {"label": "a, b", "vote": True}]}, "by letters and digits"),
        ({"seeds": [1, 1]}, "give each once"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        entry(tmp_path, "b", **changes)


def test_what_belongs_to_steps_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate_with"):
        plan(entry(tmp_path, "b", evaluate_with={"refine": True}))


def rows(values: list[float], draws: int = 50) -> np.ndarray:
    """Trainings whose images have no noise."""
    return np.repeat(np.array(values)[:, None], 1 + draws, 1)


def test_without_noise_of_images_gains_are_students() -> None:
    row, before = [0.30, 0.34, 0.33], [0.21, 0.24, 0.25]
    paired = gains(rows(row), rows(before), True, 200)
    theirs = ttest_1samp(np.subtract(row, before), 0).confidence_interval(0.95)
    assert paired.joint is not None
    assert (paired.joint.low, paired.joint.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    apart = gains(rows(row), rows(before), False, 200)
    welch = ttest_ind(row, before, equal_var=False).confidence_interval(0.95)
    assert apart.joint is not None
    assert apart.value == paired.value == pytest.approx(np.mean(row) - np.mean(before))
    # Ours weighs small degrees of freedom more: see `detection.report.intervals`.
    assert apart.joint.high - apart.joint.low >= 0.99 * (welch.high - welch.low)
    assert apart.joint.high - apart.joint.low > paired.joint.high - paired.joint.low
    assert (paired.verdict, apart.verdict) == ("more", "more")


def test_a_row_gains_nothing_over_itself_and_one_training_gives_no_verdict() -> None:
    noisy = np.random.default_rng(0).normal(0.3, 0.02, (3, 101))
    same = gains(noisy, noisy, True, 100)
    assert same.joint is not None
    assert (same.value, same.joint.low, same.joint.high) == (0, 0, 0)
    assert same.verdict == "no difference"
    one = gains(noisy[:1], noisy[1:2], True, 100)
    assert one.joint is None
    assert one.images is not None
    assert one.verdict == "unknown"


def test_an_ensemble_is_set_beside_the_mean_of_its_members() -> None:
    values = np.arange(12.0).reshape(1, 4, 3)  # a metric, four seeds, three draws
    found = grouped(values, (7, 8, 9, 10), ((7, 9), (8, 10)))
    assert found.tolist() == [[[3, 4, 5], [6, 7, 8]]]


def test_one_command_from_backbone_to_table(tmp_path: Path, backbone: str) -> None:
    told = entry(tmp_path, backbone)
    said: list[str] = []
    url, text = run(told, said.append)
    record = json.loads(Path(url, "table.json").read_text())
    assert Path(url, "table.md").read_text() == text
    assert [row["label"] for row in record["rows"]] == ["baseline", *(step["label"] for step in STEPS)]
    for row, planned in zip(record["rows"], plan(told).rows, strict=True):
        own = [scoring.read(one.output).metrics["bbox"]["AP"] for one in planned.evaluations]
        assert row["mean"]["AP"] == pytest.approx(np.mean(own), abs=1e-9)
        assert row["trainings"] == len(own)
        assert row["cost"]["seconds"] > 0
    means = [row["mean"]["AP"] for row in record["rows"]]
    steps = [row["gain"]["AP"]["value"] for row in record["rows"][1:]]
    assert steps == pytest.approx(np.diff(means), abs=1e-9)
    assert record["rows"][-1]["gain"]["AP"]["joint"] is None  # there is one ensemble
    assert record["rows"][0]["cost"]["times"] == [1, 1, 1]
    assert record["rows"][3]["cost"]["times"][0] > 1.3  # two scales
    assert "| + context | 2 |" in text
    assert "+0.1 / +1.2" in text
    assert not math.isnan(means[0])

    again: list[str] = []
    assert run(told, again.append)[1].splitlines()[2].split("|")[:5] == text.splitlines()[2].split("|")[:5]
    assert any("judging" in line for line in said)
    assert not any("judging" in line for line in again)
    changed = entry(tmp_path, backbone, evaluate_with={"batch": 2})
    run(changed, again.append)
    assert any("judging" in line for line in again)


def test_a_missing_backbone_is_told_before_ray_starts(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="no backbone artifact here"):
        run(entry(tmp_path, f"{tmp_path}/none"), said.append)
    assert said == []


def test_costs_are_of_what_is_asked(trained: Path) -> None:
    from detection import artifact
    from detection.data.sources import open_val
    from detection.evaluate import prepare
    from detection.recipe import DetectorEvaluation

    asked = DetectorEvaluation(detector=(f"{trained}/artifact",), output=str(trained / "cost"))
    recipe = prepare(asked, lambda text: None).options
    loaded = artifact.load(recipe.detector[0])
    plain = Way((loaded,), recipe.data)
    ways = {"plain": plain, "again": plain, "two": Way((loaded,), recipe.data, Steps(flip=True), (48, 64))}
    found = costs(ways, open_val(recipe.data), 3)
    assert found["plain"].times == (1, 1, 1)
    assert found["plain"].detections == found["again"].detections > 0
    assert found["two"].times[0] > 1.5


def test_results_that_are_being_replaced_are_vouched_for_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*job: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detection.artifact.read_config", lambda url: {"raybone_detector": {"weights_sha256": url}})
    monkeypatch.setattr("backbone.job.submit", killed)
    (judged,) = plan(entry(tmp_path, "b")).rows[0].evaluations[:1]
    mark = Path(judged.output) / "asked.json"
    mark.parent.mkdir(parents=True)
    mark.write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        _evaluate(judged, "data", lambda text: None)
    assert not mark.exists()


def test_two_of_the_papers_steps_at_once_are_none(tmp_path: Path) -> None:
    both = {"label": "a", "refine": True, "vote": True, "scales": [48, 64]}
    steps = [both, {"label": "b", "ensemble": 2, "flip": True}]
    assert [paper_step(one) for one in entry(tmp_path, "b", steps=steps).steps] == ["", ""]
