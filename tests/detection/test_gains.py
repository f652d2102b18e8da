"""Comparing backbones: the recipes that come of it, the report's numbers, and nothing is ever done twice."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from backbone import artifact
from backbone.cli import validate
from backbone.errors import UserError
from backbone.interop.importing import run as bring
from backbone.interop.options import Import
from backbone.training.run import open_run
from detection.gains import Gains, Pretraining, Training, _alike, _in_order, check, plan, run
from detection.report.collect import _pretrained_on, write_report
from tests.conftest import TINY
from tests.detection.conftest import SMALL, write_backbone

MakeGains = Callable[..., Gains]
WIDER = {"net": "resnet", "depth": 18, "width": 0.125, "shortcut": "B"}
"""A net with all the stages that the detector wants, in place of the recipe's own."""


@pytest.fixture
def gains(tmp_path: Path, backbone: str) -> MakeGains:
    """`gains({"seeds": [1]}, ...)`: a backbone, another, and the first one from scratch; 10 steps each."""
    other = tmp_path / "other"
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tree = {
        "name": "compare",
        "baseline": "one",
        "finetune": str(tmp_path / "detector.yaml"),
        "finetune_with": {"schedule": {"total": 10}, "data": {"val_images": 12}},
        "rows": {"one": {"artifact": backbone}, "two": {"artifact": str(other)}, "none": {"scratch": "one"}},
        "storage": str(tmp_path / "runs"),
        "resamples": 100,
    }

    def make(overrides: dict[str, Any] | None = None) -> Gains:
        if not other.exists():
            write_backbone(other, seed=1)
        return validate(Gains, tree, "gains", overrides)

    return make


def test_every_run_has_its_recipe(gains: MakeGains, tmp_path: Path, backbone: str) -> None:
    rows = {"made": {"pretrain": str(tmp_path / "tiny.yaml")}, "given": {"artifact": backbone}}
    scratch = {"made-scratch": {"scratch": "made"}, "given-scratch": {"scratch": "given"}}
    changes = {"pretrain_with": {"optim": {"lr": 0.3}}, "finetune_with.optim.lr": "0.07", "seeds": [3, 5]}
    todo = plan(gains({"rows": {**rows, **scratch}, "baseline": "made", **changes}))
    assert list(todo.pretrainings) == [("made", 0)]
    pretraining = todo.pretrainings[Pretraining("made", 0)]
    assert (pretraining.name, pretraining.optim.lr, pretraining.optim.batch) == ("compare-made", 0.3, 16)
    assert pretraining.run.storage == str(tmp_path / "runs")
    assert list(todo.finetunings) == [
        (label, ("made", 0) if label == "made" else None, seed, "") for label in {**rows, **scratch} for seed in (3, 5)
    ]
    made = str(tmp_path / "runs" / "compare-made" / "artifact")
    for (label, _, seed, _), one in todo.finetunings.items():
        assert (one.name, one.seed, one.run.storage) == (f"compare-{label}-seed{seed}", seed, str(tmp_path / "runs"))
        assert one.backbone == (made if label.startswith("made") else backbone)
        assert one.from_scratch == ("scratch" in label)
        assert one.detector.norm == ("group" if "scratch" in label else "frozen")
        assert (one.optim.lr, one.optim.batch, one.schedule.total, one.data.val_images) == (0.07, 8, 10, 12)
    assert len(todo.scaling) == 1 + 8


def test_pretrainings_are_repeated_and_fine_tunings_nested(gains: MakeGains, tmp_path: Path, backbone: str) -> None:
    """Each of its own seeds; what would be trained without pretrain_seeds keeps its name, and is not trained again."""
    rows = {"made": {"pretrain": str(tmp_path / "tiny.yaml")}, "given": {"artifact": backbone, "seeds": [7, 8, 9]}}
    rows |= {"none": {"scratch": "made"}}
    asked = gains({"rows": rows, "baseline": "made", "seeds": [3, 5], "pretrain_seeds": [4, 0]})
    todo, once = plan(asked), plan(gains({"rows": rows, "baseline": "made", "seeds": [3, 5]}))
    names = {key: (recipe.name, recipe.seed) for key, recipe in todo.pretrainings.items()}
    assert names == {("made", 4): ("compare-made-pretrain4", 4), ("made", 0): ("compare-made", 0)}
    assert [(key.label, key.seed) for key in todo.finetunings] == [
        *[("made", 3), ("made", 5)] * 2,
        *[("given", 7), ("given", 8), ("given", 9)],
        *[("none", 3), ("none", 5)],
    ]
    for key in once.finetunings:
        assert todo.finetunings[key] == once.finetunings[key]
    seeds = []
    for key, recipe in todo.tuned("made").items():
        assert key.pretraining
        assert recipe.backbone == str(tmp_path / "runs" / names[key.pretraining][0] / "artifact")
        assert recipe.name == f"{names[key.pretraining][0]}-seed{key.seed}"
        seeds.append(recipe.seed)
    assert len(set(seeds)) == 4
    assert seeds[2:] == [3, 5]
    tasks = _in_order(asked, todo, print)
    assert tasks["made-pretrain4-seed3"].after == ["made-pretrain4"]
    assert tasks["made-seed3"].after == ["made"]
    assert tasks["none-seed3"].after == ["made"]  # any of them has its net
    assert tasks["given-seed7"].after == []


def test_a_detector_waits_for_its_own_backbone_alone(gains: MakeGains, tmp_path: Path, backbone: str) -> None:
    made = {"pretrain": str(tmp_path / "tiny.yaml")}
    rows = {"slow": made, "given": {"artifact": backbone}, "scratch": {"scratch": "slow"}, "quick": made}
    asked = gains({"rows": rows, "baseline": "slow", "seeds": [0, 1]})
    tasks = _in_order(asked, plan(asked), print)
    assert {name: task.after for name, task in tasks.items()} == {
        **{"slow": [], "slow-seed0": ["slow"], "slow-seed1": ["slow"]},
        **{"given-seed0": [], "given-seed1": [], "scratch-seed0": ["slow"], "scratch-seed1": ["slow"]},
        **{"quick": [], "quick-seed0": ["quick"], "quick-seed1": ["quick"]},
    }


def test_a_backbone_that_fails_leaves_the_other_rows_to_finish(gains: MakeGains, tmp_path: Path, backbone: str) -> None:
    made = {"pretrain": str(tmp_path / "tiny.yaml")}
    diverges = {"pretrain_with": {"model": WIDER, "optim": {"lr": 1e30}, "schedule": {"total": 4}}}
    rows = {"made": made, "none": {"scratch": "made"}, "given": {"artifact": backbone}}
    asked = gains({"rows": rows, "baseline": "made", "finetune_with.schedule.total": 3, **diverges})
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert list(failed) == ["made", "made-seed0", "none-seed0"]
    assert "loss is not finite" in failed["made"]
    assert failed["made-seed0"] == failed["none-seed0"] == "not begun, its backbone is missing"
    assert "[made] failed" in said
    assert [folder.parent.name for folder in (tmp_path / "runs").glob("*/artifact")] == ["compare-given-seed0"]
    with pytest.raises(
        UserError, match=r"(?s)made: loss is not finite.*results of given alone, the baseline being made"
    ):
        write_report(asked, todo, "", failed)


def test_a_report_of_what_there_is(gains: MakeGains, tmp_path: Path) -> None:
    """Masks too. A training that failed is named and nothing of it read, though an older run's results lie there."""
    changes = {"finetune_with.schedule.total": 2, "finetune_with.detector": {"masks": True}}
    asked = gains({"seeds": [0, 1], "rows.none.seeds": [0], **changes})
    todo, failed = run(asked, lambda text: None)
    assert failed == {}
    _, markdown = write_report(asked, todo, "", {"two-seed1": "out of memory"})
    assert "compare-two-seed1 is missing: out of memory" in markdown
    report = json.loads((tmp_path / "runs/compare/report.json").read_text())
    assert [len(row["trainings"]) for row in report["rows"]] == [2, 1, 1]
    assert report["rows"][1]["gain"]["AP"]["verdict"] is None
    own = json.loads((tmp_path / "runs/compare-two-seed0/results/metrics.json").read_text())
    assert report["rows"][1]["AP_masks"]["value"] == pytest.approx(own["segm"]["AP"], abs=1e-9)
    lost = {"two-seed0": "out of memory", "two-seed1": "out of memory"}
    write_report(asked, todo, "", lost)
    report = json.loads((tmp_path / "runs/compare/report.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["one", "none"]
    assert [one["run"] for one in report["missing"]] == ["compare-two-seed0", "compare-two-seed1"]


def test_rows_begun_on_other_hardware_take_the_precision_of_the_first(gains: MakeGains) -> None:
    """Where the recipe leaves it to the hardware; a name stands as it is."""
    todo = plan(gains({"finetune_with.compute.precision": "auto", "seeds": [0, 1]}))
    assert _alike(todo.finetunings) == todo.finetunings
    two = Training("two", None, 1)
    begun = todo.finetunings[two]
    open_run(begun.with_precision("bf16"), {}, 1)
    found = _alike(todo.finetunings)
    assert found[two] == begun, "goes on by its own record"
    assert {one.compute.precision for key, one in found.items() if key != two} == {"bf16"}
    assert [one.name for one in found.values()] == [one.name for one in todo.finetunings.values()]
    named = plan(gains({"finetune_with.compute.precision": "fp32", "seeds": [0, 1]})).finetunings
    assert _alike(named) == named


def test_scratch_rows_train_what_others_keep_fixed(gains: MakeGains) -> None:
    asked = {"norm": "trainable", "freeze_at": 2}
    todo = plan(gains({"finetune_with.detector": asked, "finetune_with.optim": {"micro_batch": 8}}))
    detectors = [todo.finetunings[Training(one, None, 0)].detector for one in ("one", "none")]
    assert [(one.freeze_at, one.norm) for one in detectors] == [(2, "trainable"), (0, "trainable")]


def test_scratch_rows_have_a_schedule_of_their_own(gains: MakeGains) -> None:
    todo = plan(gains({"scratch_with": {"schedule": {"total": 30}, "optim": {"micro_batch": 8}}}))
    recipes = [todo.finetunings[Training(one, None, 0)] for one in ("one", "none")]
    assert [(one.schedule.total, one.optim.micro_batch) for one in recipes] == [(10, 4), (30, 8)]


MISTAKES = [
    pytest.param({"baseline": "three"}, "baseline 'three' is not among the rows one, two, none", id="baseline"),
    pytest.param({"rows.none.scratch": "three"}, "scratch 'three' is not a row", id="scratch of nothing"),
    pytest.param({"rows.two": {"scratch": "none"}}, "scratch 'none' is not a row", id="scratch of scratch"),
    pytest.param({"rows.two": {}}, "exactly one of pretrain, artifact, scratch, not 0", id="empty row"),
    pytest.param({"rows.two.pretrain": "x"}, "exactly one of pretrain, artifact, scratch, not 2", id="two at once"),
    pytest.param({"rows.a/b": {"artifact": "x"}}, "it becomes part of a run's name", id="label"),
    pytest.param({"seeds": [1, 1]}, "at least one, each once", id="seeds"),
    pytest.param({"seeds": [0, 2**64]}, r"seeds\.1: .*less than 9223372036854775808", id="large seed"),
    pytest.param({"seeds": []}, "at least one, each once", id="no seed"),
    pytest.param({"rows.two.seeds": [1, 1]}, r"seeds \[1, 1\]: give each once", id="a row's seeds"),
    pytest.param({"pretrain_seeds": [0, 1]}, "pretrain_seeds is read by rows with pretrain", id="nothing to pretrain"),
    pytest.param(
        {"rows.two": {"pretrain": "x"}, "pretrain_seeds": [1, 1]}, r"pretrain_seeds \[1, 1\]: give each", id="twice"
    ),
    pytest.param(
        {"rows.two": {"pretrain": "x"}, "pretrain_seeds": [1], "pretrain_with.seed": 2}, "give one of them", id="both"
    ),
    pytest.param({"rows": {"one": {"artifact": "x"}}}, "comparing takes at least two", id="one row"),
    pytest.param(
        {"finetune_with.detector": {"norm": "trainable"}, "rows.none": {"artifact": "x"}},
        "row one: detector.norm trainable: .* over 4 image.*--finetune_with.detector.norm frozen",
        id="batch norm over few",
    ),
    pytest.param(
        {"scratch_with.detector": {"norm": "trainable"}},
        "trainable: .* over 4 image.*--scratch_with.detector.norm group",
        id="batch norm from scratch over few",
    ),
    pytest.param(
        {"rows.none": {"artifact": "x"}, "scratch_with": {"seed": 1}}, "scratch_with is read by rows with", id="none"
    ),
    pytest.param({"pretrain_with": {"seed": 1}}, "pretrain_with is read by rows with pretrain", id="unread"),
    pytest.param({"finetune_with.optim.rl": 0.1}, r"detector\.yaml: optim\.rl: unknown key; perhaps", id="typo"),
    pytest.param({"finetune": "nowhere.yaml"}, r"nowhere\.yaml: no such recipe", id="no recipe"),
    pytest.param({"rows.two.artifact": "/nowhere"}, "/nowhere: no backbone artifact here", id="no artifact"),
    pytest.param({"finetune_with.detector.anchor_sizes": [8]}, "anchor_sizes has 1 sizes", id="detector"),
    pytest.param({"resamples": 10}, "resamples", id="resamples"),
    pytest.param({"rows.two": {"pretrain": "TINY"}}, "anchor_sizes has 5 sizes; .* needs 4", id="a net to be made"),
    pytest.param(
        {
            "rows.one-seed0": {"artifact": "x"},
            "rows.made": {"pretrain": "TINY"},
            "rows.made-seed0": {"pretrain": "TINY"},
        },
        "two runs would be called compare-made-seed0; give one of the rows another label",
        id="names",
    ),
]


@pytest.mark.parametrize(("change", "complaint"), MISTAKES)
def test_mistakes_are_named_before_anything_is_trained(
    gains: MakeGains, tmp_path: Path, change: dict, complaint: str
) -> None:
    own = json.loads(json.dumps(change).replace("TINY", str(tmp_path / "tiny.yaml")))
    with pytest.raises(UserError, match=complaint):
        check(plan(gains(own)))
    assert not (tmp_path / "runs").exists()


def test_data_are_looked_at_before_anything_is_pretrained(gains: MakeGains, tmp_path: Path) -> None:
    tree = {**SMALL, "data": {"source": "coco", "train": "/nowhere/train", "val": "/nowhere/val"}}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(tree))
    rows = {"rows.two": {"pretrain": str(tmp_path / "tiny.yaml")}, "finetune_with": {}}
    with pytest.raises(UserError, match="/nowhere"):
        run(gains(rows), lambda text: None)
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    images = {"source": "imagefolder", "train": "/nowhere/photos", "val": "/nowhere/photos", "size": 32}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {**images, "augment": {"kind": "cifar"}}}))
    with pytest.raises(UserError, match="/nowhere/photos"):
        run(gains(rows), lambda text: None)
    assert not (tmp_path / "runs").exists()


def state_of(runs: Path) -> dict[str, tuple[int, str]]:
    """Time and hash of every artifact's weights."""
    files = sorted(runs.glob("*/artifact/*"))
    return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}


def assert_reported(storage: Path, labels: list[str], seeds: list[int]) -> dict[str, Any]:
    """The report's numbers against each run's own metrics.json."""
    report = json.loads((storage / "compare" / "report.json").read_text())
    assert [row["label"] for row in report["rows"]] == labels
    for row in report["rows"]:
        assert [one["seed"] for one in row["trainings"]] == seeds
        runs = [storage / f"compare-{row['label']}-seed{seed}" for seed in seeds]
        own = [json.loads((url / "results" / "metrics.json").read_text())["bbox"] for url in runs]
        for name in ("AP", "AP50", "AP75"):
            assert [one[name] for one in row["trainings"]] == [metrics[name] for metrics in own]
            assert row[name]["value"] == pytest.approx(sum(m[name] for m in own) / len(own), abs=1e-6)
        config = json.loads((runs[0] / "artifact" / "config.json").read_text())["raybone_detector"]
        assert row["params"] == config["provenance"]["cost"]["parameters"]
        assert row["train_seconds"] > 0
    page = (storage / "compare" / "report.html").read_text()
    table = (storage / "compare" / "report.md").read_text()
    assert all(label in page and label in table for label in labels)
    return report


def test_from_backbones_to_the_report_and_again(gains: MakeGains, tmp_path: Path) -> None:
    """Three rows, two seeds. Called again nothing is trained; a row more trains that one alone."""
    asked = gains({"seeds": [0, 1]})
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert failed == {}
    folder, markdown = write_report(asked, todo, "the command")
    assert folder == str(tmp_path / "runs" / "compare")
    assert "the command" in (Path(folder) / "report.html").read_text()
    assert markdown == (Path(folder) / "report.md").read_text()
    report = assert_reported(tmp_path / "runs", ["one", "two", "none"], [0, 1])
    assert report["rows"][2]["pretrained"] is None
    before = state_of(tmp_path / "runs")
    assert len(before) == 12

    said.clear()
    write_report(asked, run(asked, said.append)[0], "again")
    assert state_of(tmp_path / "runs") == before
    assert sum("is finished" in line for line in said) == 6
    assert_reported(tmp_path / "runs", ["one", "two", "none"], [0, 1])

    more = gains({"seeds": [0], "rows.three": {"scratch": "two"}})
    write_report(more, run(more, said.append)[0], "more")
    after = state_of(tmp_path / "runs")
    assert {file: after[file] for file in before} == before
    assert len(after) == len(before) + 2
    assert_reported(tmp_path / "runs", ["one", "two", "none", "three"], [0])

    todo, failed = run(gains({"finetune_with.optim": {"lr": 0.5}}), said.append)
    assert list(failed) == ["one-seed0", "two-seed0", "none-seed0"]
    assert "optim.lr: the run has 0.02, this recipe 0.5" in failed["one-seed0"]
    with pytest.raises(UserError, match="results of no row"):
        write_report(gains(), todo, "", failed)
    with pytest.raises(UserError, match="one-seed9/results"):
        write_report(gains({"seeds": [0, 9]}), plan(gains({"seeds": [0, 9]})), "")


def test_what_is_not_pretrained_yet_is_pretrained_first(gains: MakeGains, tmp_path: Path) -> None:
    rows = {"made": {"pretrain": str(tmp_path / "tiny.yaml")}, "none": {"scratch": "made"}}
    changes = {"pretrain_with": {"model": WIDER, "schedule": {"total": 4}}}
    asked = gains({"rows": rows, "baseline": "none", "finetune_with.schedule.total": 3, **changes})
    write_report(asked, run(asked, lambda text: None)[0], "")
    report = assert_reported(tmp_path / "runs", ["made", "none"], [0])
    config = json.loads((tmp_path / "runs" / "compare-made" / "artifact" / "config.json").read_text())
    metrics = config["raybone"]["provenance"]["metrics"]
    assert report["rows"][0]["pretrain"] == {"top-1": pytest.approx(1 - metrics["val_error"] / 100)}
    assert report["rows"][0]["pretrained"] == "synthetic, 160 images"
    assert report["rows"][1]["pretrain"] == {}


def test_imported_backbones_are_said_to_be(tmp_path: Path) -> None:
    """The provenance is what the import wrote; of one that was trained here once, both are said."""
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    bring(Import(source="torchvision", weights=str(weights), output=str(tmp_path / "artifact")))
    provenance = artifact.load(str(tmp_path / "artifact"))[2]["provenance"]
    assert _pretrained_on(provenance) == f"imported from torchvision: {weights}"
    here = {"recipe": {"data": {"source": "imagefolder", "train": "/data/train"}}, "train_images": 1200}
    trained = "imagefolder /data/train, 1,200 images"
    assert _pretrained_on(here) == trained
    assert _pretrained_on({**here, **provenance}) == f"{trained}; imported from torchvision: {weights}"
    assert _pretrained_on({}) == "unknown"


@pytest.mark.slow
@pytest.mark.ray
def test_runs_side_by_side_on_a_cluster(gains: MakeGains, tmp_path: Path, ray_cluster: Any) -> None:
    """Two at a time on four CPUs, each line under its run's name; a mistake in one leaves the other finished."""
    asked = gains({"finetune_with.scaling": {"num_workers": 1}, "finetune_with.schedule.total": 3, "parallel": 2})
    asked = asked.model_copy(update={"rows": {k: asked.rows[k] for k in ("one", "two")}})
    said: list[str] = []
    todo, _ = run(asked, said.append)
    assert "0 pretraining and 2 fine-tuning run(s), 2 at a time" in said
    write_report(asked, todo, "")
    assert_reported(tmp_path / "runs", ["one", "two"], [0])
    assert ray_cluster.is_initialized()  # whose cluster it is may go on using it
