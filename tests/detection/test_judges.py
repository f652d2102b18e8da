"""Several ways to judge the same backbones: rungs of a ladder and several detectors, from the recipe to the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from scipy import stats

from backbone.cli import validate
from backbone.errors import UserError
from backbone.nets.count import macs
from detection.data.sources import open_sources
from detection.finetune import build_detector, load_backbone
from detection.forecast import describe, works
from detection.gains import Plan, Training, check, plan, run
from detection.gains_recipe import Gains
from detection.nets import count
from detection.report import several
from detection.report.collect import best_backbone, write_report
from tests.detection.conftest import SMALL, write_backbone
from tests.detection.report.made import Page
from tests.detection.test_plan import lines

MakeGains = Callable[..., Gains]
LADDER = {"heads": {"detector": {"freeze_at": 5}}, "quarter": {"data": {"share": 0.25}}}
BLOCKS = ("faster", "masks")


@pytest.fixture
def gains(tmp_path: Path, backbone: str) -> MakeGains:
    """`gains({"ladder": ...})`: three backbones, the third from scratch; 3 steps, twice each."""
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    other = write_backbone(tmp_path / "other", seed=1)
    tree = {
        "name": "compare",
        "baseline": "one",
        "finetune": str(tmp_path / "detector.yaml"),
        # Whatever is seen is a detection, so that AP is above 0 after so few steps, and no two rows' are alike.
        "finetune_with": {
            "schedule": {"total": 3},
            "data": {"val_images": 12},
            "detector": {"roi": {"score": 0.0, "detections": 20}},
        },
        "scratch_with": {"schedule": {"total": 4}},
        "rows": {"one": {"artifact": backbone}, "two": {"artifact": other}, "none": {"scratch": "one"}},
        "seeds": [0, 1],
        "storage": str(tmp_path / "runs"),
        "resamples": 100,
    }
    return lambda overrides=None: validate(Gains, tree, "gains", overrides)


def test_rungs_are_the_recipe_but_for_what_they_change(gains: MakeGains) -> None:
    short = {"short": {"schedule": {"total": 2}}}
    alone, todo = plan(gains()), plan(gains({"ladder": LADDER | short}))
    assert {key: todo.finetunings[key] for key in alone.finetunings} == alone.finetunings  # the last, names and all
    assert list(todo.of("").finetunings) == list(alone.finetunings)
    last = alone.finetunings[Training("two", None, 1)].model_dump()
    for block, (section, field, value) in {
        "heads": ("detector", "freeze_at", 5),
        "quarter": ("data", "share", 0.25),
        "short": ("schedule", "total", 2),
    }.items():
        recipe = todo.finetunings[Training("two", None, 1, block)]
        last[section], kept = {**last[section], field: value}, last[section]
        assert recipe.model_dump() == {**last, "name": f"compare-two-{block}-seed1"}
        last[section] = kept
    # From scratch: no rung that fixes what is random, and a short one is short, whatever scratch_with says.
    scratch = {key.block: recipe.schedule.total for key, recipe in todo.tuned("none").items()}
    assert scratch == {"quarter": 4, "short": 2, "": 4}
    assert {recipe.data.share for key, recipe in todo.finetunings.items() if key.block == "quarter"} == {0.25}


def test_the_dry_run_says_what_each_rung_takes(gains: MakeGains, tmp_path: Path) -> None:
    asked = gains({"ladder": LADDER})
    text = describe(asked, plan(asked))
    assert "heads: 4 fine-tunings, 12 steps, " in text
    assert "; without none: random weights must train" in text
    assert "quarter: 6 fine-tunings, 20 steps, " in text
    assert "full: 6 fine-tunings, 20 steps" in text
    assert lines(text)["runs"] == "0 pretraining, 0 steps; 16 fine-tuning, 52 steps"
    assert not (tmp_path / "runs").exists()
    once = gains({"ladder": LADDER, "seeds": [0]})
    assert "two: one training, so nothing of what another would change" in describe(once, plan(once))


def test_multiply_adds_are_those_of_what_is_trained_on_and_judged(gains: MakeGains) -> None:
    """Forward of all, twice as much backward of what trains: 2 trainings of 3 steps of 8 images, 12 judged after."""
    todo = plan(gains({"ladder": LADDER}))
    counted = works(todo)
    recipe = todo.finetunings[Training("one", None, 0)]
    net, _, block = load_backbone(recipe)
    body = macs(net, 64) - net.stages["C5"].channels * len(block["classes"])
    whole = count.macs(build_detector(recipe, net, open_sources(recipe.data)[0]), 64, 64)
    assert counted["", "one"] == 2 * (24 * 3 + 12) * whole
    assert counted["heads", "one"] == 2 * (24 * (3 * whole - 2 * body) + 12 * whole)
    assert ("heads", "none") not in counted


@pytest.mark.slow
def test_from_the_ladder_to_its_report(gains: MakeGains, tmp_path: Path) -> None:
    plain = gains()
    todo, failed = run(plain, lambda text: None)
    assert failed == {}
    write_report(plain, todo, "the command")
    folder = tmp_path / "runs" / "compare"
    before = json.loads((folder / "report.json").read_text())
    assert "ladder" not in before
    assert not (folder / "ladder.png").exists()

    asked = gains({"ladder": LADDER})
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert failed == {}
    assert sum("is finished" in line for line in said) == 6
    _, text = write_report(asked, todo, "the command")
    report = json.loads((folder / "report.json").read_text())
    ladder = report.pop("ladder")
    assert report == before  # the last rung is the comparison as it was

    rungs = {rung["name"]: rung for rung in ladder["rungs"]}
    assert list(rungs) == ["heads", "quarter", "full"]
    assert [rung["labels"] for rung in rungs.values()] == [1.0, 0.25, 1.0]
    assert [rung["label_images"] for rung in rungs.values()] == [32, 8, 32]
    assert [rung["trainings"] for rung in rungs.values()] == [4, 6, 6]
    assert rungs["heads"]["without"] == ["none"]
    assert rungs["quarter"]["changes"] == {"data.share": 0.25}
    for row in report["rows"]:
        assert rungs["full"]["worth"][row["label"]] == row["AP"]
    for name, rung in rungs.items():
        block = "" if name == "full" else f"-{name}"
        worth, seconds = {}, {}
        for label in rung["worth"]:
            runs = [tmp_path / "runs" / f"compare-{label}{block}-seed{seed}" for seed in (0, 1)]
            found = [json.loads((one / "results/metrics.json").read_text()) for one in runs]
            worth[label] = np.mean([one["bbox"]["AP"] for one in found])
            history = [record for one in runs for record in json.loads((one / "history.json").read_text())]
            seconds[label] = sum(record.get("val_seconds", 0) for record in history)
            assert rung["worth"][label]["value"] == pytest.approx(worth[label], abs=1e-9)
        assert rung["seconds"] > sum(seconds.values())
        if name == "full":
            assert (rung["tau"], rung["seconds_share"], rung["multiply_adds_share"]) == (None, 1, 1)
            continue
        last = [rungs["full"]["worth"][label]["value"] for label in worth]
        expected = stats.kendalltau(list(worth.values()), last).statistic
        # Three steps may leave all rows at nothing, which is no order; for orders see report/test_orders.py.
        assert rung["tau"]["value"] == (pytest.approx(expected) if np.isfinite(expected) else None)
        assert rung["tau"]["rows"] == list(worth)
    assert rungs["heads"]["multiply_adds_share"] < 1

    # What is frozen is the artifact's to the last bit, and its heads have been trained.
    given, frozen = (
        load_file(place / "model.safetensors")
        for place in (tmp_path / "other", tmp_path / "runs/compare-two-heads-seed0/artifact")
    )
    body = {key: value for key, value in frozen.items() if ".body." in key}
    assert len(body) > 20
    for key, value in body.items():
        np.testing.assert_array_equal(value, given[key.split(".body.")[1]], key)

    html = Page((folder / "report.html").read_text())
    assert (folder / "report.md").read_text() == text
    assert (folder / "ladder.png").stat().st_size > 5000
    assert any("data:image/png" in (image["src"] or "") for image in html.all("img"))
    assert "Rung heads is without none, and compared without." in text
    assert "quarter" in html.table
    assert_failures_are_named(asked, todo, folder)


def assert_failures_are_named(asked: Gains, todo: Plan, folder: Path) -> None:
    """Rungs and trainings; without the last rung there is no report."""
    lost = {_short(key): "out of memory" for key in todo.finetunings if key.block == "heads"}
    lost |= {"one-quarter-seed1": "loss is not finite"}
    _, text = write_report(asked, todo, "", lost)
    ladder = json.loads((folder / "report.json").read_text())["ladder"]
    assert ladder["left_out"] == {"heads": "out of memory"}
    assert [rung["trainings"] for rung in ladder["rungs"]] == [5, 6]
    assert ladder["rungs"][0]["tau"]["joint"] is None
    assert "Rung heads is missing: out of memory" in text
    assert "Rung quarter: what another training would change is unknown: trained once, one." in text
    lost |= {_short(key): "out of memory" for key in todo.finetunings if not key.block}
    with pytest.raises(UserError, match="no report: there are results of no row"):
        write_report(asked, todo, "", lost)


def _short(key: Training) -> str:
    return f"{key.label}-{key.block}-seed{key.seed}" if key.block else f"{key.label}-seed{key.seed}"


@pytest.fixture
def two(gains: MakeGains, tmp_path: Path) -> MakeGains:
    """Two detectors, the second with masks and a shorter schedule."""
    recipe = str(tmp_path / "detector.yaml")
    masks = {"recipe": recipe, "finetune_with": {"detector": {"masks": True}, "schedule": {"total": 2}}}
    return lambda overrides=None: gains({"finetune": {"faster": recipe, "masks": masks}, **(overrides or {})})


def test_every_detector_has_its_recipe(two: MakeGains) -> None:
    todo = plan(two({"finetune.masks.scratch_with": {"schedule": {"total": 5}}}))
    assert {(key.block, recipe.title) for key, recipe in todo.finetunings.items()} == {
        ("faster", "faster-rcnn-fpn"),
        ("masks", "mask-rcnn-fpn"),
    }
    totals = {key[0::3]: recipe.schedule.total for key, recipe in todo.finetunings.items()}
    assert [totals[key] for key in (("one", "faster"), ("one", "masks"))] == [3, 2]
    assert [totals[key] for key in (("none", "faster"), ("none", "masks"))] == [4, 5]
    names = [recipe.name for recipe in todo.tuned("two").values()]
    assert names == [f"compare-two-{block}-seed{seed}" for block in BLOCKS for seed in (0, 1)]
    assert {recipe.seed for key, recipe in todo.finetunings.items() if key.seed == 1} == {1}


def test_from_several_detectors_to_the_report_of_their_orders(two: MakeGains, tmp_path: Path) -> None:
    asked = two()
    todo, failed = run(asked, lambda text: None)
    assert failed == {}
    _, text = write_report(asked, todo, "the command")
    folder = tmp_path / "runs" / "compare"
    report = json.loads((folder / "report.json").read_text())
    assert report["format"] == 4
    assert list(report["blocks"]) == list(BLOCKS)
    values = []
    for block, told in report["blocks"].items():
        assert told == json.loads((folder / block / "report.json").read_text())
        assert told["title"].endswith(f"compare, {block}")
        assert (folder / block / "report.html").exists()
        assert [row["label"] for row in told["rows"]] == ["one", "two", "none"]
        for row in told["rows"]:
            own = json.loads((tmp_path / f"runs/compare-{row['label']}-{block}-seed0/results/metrics.json").read_text())
            assert row["trainings"][0]["AP"] == own["bbox"]["AP"]
        values.append([row["AP"]["value"] for row in told["rows"]])
    (pair,) = report["orders"]
    assert pair["of"] == list(BLOCKS)
    expected = stats.kendalltau(*values).statistic
    if np.isfinite(expected):
        assert pair["value"] == pytest.approx(expected)
        assert pair["joint"]["low"] <= pair["value"] <= pair["joint"]["high"]
        assert f"faster and masks: tau {pair['value']:.2f}".replace("-", "−") in text
    else:  # so few steps may leave a detector's rows at nothing
        assert pair["value"] is None
    if any(several.level(told, [row["label"] for row in told["rows"]]) for told in report["blocks"].values()):
        assert "apart: their values are equal" in text
    else:
        same = several.order(report["blocks"]["faster"]) == several.order(report["blocks"]["masks"])
        assert ("is the same in all 2" if same else "is not the same in all") in text
    html = (folder / "report.html").read_text()
    Page(html)
    assert 'href="faster/report.html"' in html
    assert text == (folder / "report.md").read_text()

    best = max(report["blocks"]["faster"]["rows"][:2], key=lambda row: row["AP"]["value"])["label"]
    assert best_backbone(asked, todo, str(folder), {})[0] == asked.rows[best].artifact

    lost = {_short(key): "out of memory" for key in todo.finetunings if key.block == "masks"}
    _, text = write_report(asked, todo, "", lost)
    assert "masks is missing: one-masks-seed0: out of memory" in text
    assert json.loads((folder / "report.json").read_text())["orders"] == []


MISTAKES: list[Any] = [
    ({"ladder.tenth.data.shere": 0.1}, r"with ladder\.tenth: data\.shere: unknown key; perhaps you meant data\.share"),
    ({"ladder.none.data.share": 0.01}, r"data\.share 0\.01 of 32 images is no image at all; give 0\.03125 or more"),
    ({"ladder.a/b.data.share": 0.1}, r"ladder 'a/b': use letters"),
    ({"ladder.full.data.share": 0.1}, r"ladder\.full: so reports call the last rung"),
    ({"ladder": {"same": {}}}, r"ladder\.same: changes nothing"),
    ({"ladder.heads.detector.freeze_at": 6}, r"detector\.freeze_at: .*less than or equal to 5"),
    ({"finetune": {}}, "finetune names no recipe"),
    ({"finetune": {"one": "nowhere.yaml"}}, r"nowhere\.yaml: no such recipe"),
    ({"finetune": {"one": {"recipes": "x"}}}, r"finetune\.dict.*one\.recipe"),
    ({"finetune": {"one": "x"}, "ladder": LADDER}, "ladder: its rungs are cheaper ways of one recipe"),
    ({"rows.one-quarter": {"artifact": "x"}, "ladder": LADDER}, "two runs would be called compare-one-quarter-seed0"),
]


@pytest.mark.parametrize(("change", "complaint"), MISTAKES)
def test_mistakes_are_named(gains: MakeGains, tmp_path: Path, change: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check(plan(gains(change)))
    assert not (tmp_path / "runs").exists()


def test_a_schedule_from_scratch_that_no_row_reads() -> None:
    rows = {"one": {"artifact": "a"}, "two": {"artifact": "b"}}
    blocks = {"f": {"recipe": "r.yaml", "scratch_with": {"schedule": {"total": 5}}}}
    with pytest.raises(UserError, match="scratch_with is read by rows with scratch, and there is none"):
        validate(Gains, {"name": "n", "baseline": "one", "finetune": blocks, "rows": rows}, "test")
