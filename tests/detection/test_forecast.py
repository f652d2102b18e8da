"""What a comparison will take: runs and steps counted, hours against the cost model, disk against a run's own files."""

from pathlib import Path

import pytest
import torch
import yaml

from backbone.cli import validate
from backbone.nets import build as build_backbone
from backbone.nets.count import macs, parameters
from backbone.options import NetOptions
from backbone.training.cost import predict
from backbone.training.plan import shape_of
from detection.data.sources import open_sources
from detection.finetune import build_detector, load_backbone
from detection.forecast import describe
from detection.gains import Gains, plan, run
from detection.nets import count
from tests.backbone.training.test_cost import RATES
from tests.conftest import TINY
from tests.detection.conftest import SMALL
from tests.detection.test_plan import lines


@pytest.fixture
def gains(tmp_path: Path, backbone: str) -> Gains:
    """A net pretrained twice and fine-tuned twice each, one given, one from scratch; 12 images to train on."""
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tree = {
        "name": "compare",
        "baseline": "given",
        "finetune": str(tmp_path / "detector.yaml"),
        "finetune_with": {"schedule": {"total": 3}},
        "pretrain_with": {"model": {"net": "resnet", "depth": 18, "width": 0.125, "shortcut": "B"}},
        "rows": {"made": {"pretrain": str(tmp_path / "tiny.yaml")}, "given": {"artifact": backbone}},
        "pretrain_seeds": [0, 1],
        "seeds": [0, 1],
        "storage": str(tmp_path / "runs"),
    }
    tree["rows"]["none"] = {"scratch": "given", "seeds": [0]}
    return validate(Gains, tree, "gains")


def test_runs_steps_and_hours(gains: Gains, tmp_path: Path) -> None:
    todo = plan(gains)
    text = describe(gains, todo)
    told = lines(text)
    steps = int(next(iter(todo.pretrainings.values())).schedule.total)
    assert told["report"] == f"{tmp_path}/runs/compare/report.html"
    assert told["runs"] == f"2 pretraining, {2 * steps} steps; 7 fine-tuning, 21 steps"
    assert f"made: 2 pretrainings of {steps} steps; 4 fine-tunings of 3 steps" in text
    assert "cost_model.py" in told["time"]
    assert "none: one training, so nothing of what another would change, and no verdict" in text
    assert "--rows.none.seeds 0 1 2" in text
    assert "given: an artifact is one pretraining" in text
    assert "made: one" not in text
    assert not (tmp_path / "runs").exists()

    costs = []
    for recipe in todo.pretrainings.values():
        net = build_backbone(recipe.model, 12)
        costs.append(predict(shape_of(recipe, macs(net, recipe.data.size), parameters(net), 0, 160, 50), RATES))
    given = next(iter(todo.tuned("given").values()))
    for recipe in todo.finetunings.values():
        train, val = open_sources(recipe.data)
        net, _, _ = load_backbone(recipe if recipe.from_scratch else given)
        detector = build_detector(recipe, net, train)
        weights, cost = parameters(detector), count.macs(detector, 64, 64)
        costs.append(predict(shape_of(recipe, cost, weights, recipe.data.workers, len(train), len(val)), RATES))
    told = lines(describe(gains, todo, RATES))
    assert told["rates"].startswith(RATES.measured)
    assert told["time"].startswith(f"{sum(c.total for c in costs) / 3600:.3g} h one run after another")
    assert f"{sum(c.device_hours for c in costs):.3g} device-hours" in told["time"]


def test_what_is_hardly_meant_is_said_once(gains: Gains) -> None:
    """As by the dry runs of its trainings, of which several say the same."""
    longer = gains.model_copy(update={"finetune_with": {"schedule": {"total": 100_000}, "optim": {"batch": 64}}})
    told = [line for line in describe(longer, plan(longer)).splitlines() if line.startswith("warning")]
    assert any("optim.batch 64 over 32 images" in line for line in told), told
    assert any("epochs: the schedule is for more images than 32" in line for line in told)
    assert len(told) == len(set(told))


def test_what_is_finished_takes_no_time_and_disk_is_what_runs_leave(gains: Gains, tmp_path: Path) -> None:
    rows = {label: gains.rows[label] for label in ("given", "none")}
    gains = gains.model_copy(update={"rows": rows, "pretrain_seeds": (), "pretrain_with": {}, "seeds": (0,)})
    todo, failed = run(gains, lambda text: None)
    assert failed == {}
    told = lines(describe(gains, todo, RATES))
    assert told["runs"].endswith("2 of them finished")
    assert told["time"].startswith("0 h one run after another")
    kept = sum(f.stat().st_size for f in (tmp_path / "runs").glob("*/*/**/*") if f.suffix in (".pt", ".safetensors"))
    assert float(told["disk"].split()[0]) == pytest.approx(kept / 2**30, abs=0.02)


def test_the_recipes_suffice(gains: Gains, tmp_path: Path) -> None:
    """Data and artifacts that are not there are named, and what they would have said is not made up."""
    data = {"source": "coco", "train": str(tmp_path / "photographs"), "val": str(tmp_path / "others")}
    photographs = {"source": "imagefolder", "train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
    rows = {**gains.rows, "gone": gains.rows["given"].model_copy(update={"artifact": str(tmp_path / "gone")})}
    asked = gains.model_copy(
        update={"rows": rows, "pretrain_with": {}, "finetune_with": {"schedule": {"total": 3}, "data": data}}
    )
    tree = {**SMALL, "data": {"shorter_side": [64], "longer_side": 64, "workers": 0}}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(tree))
    tree = {**TINY, "model": gains.pretrain_with["model"], "data": {"size": 64, **photographs}}
    tree["schedule"] = {"kind": "cosine", "total": 7, "unit": "epochs"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    text = describe(asked, plan(asked), RATES)
    told = lines(text)
    assert "made: 2 pretrainings of 7 epochs; 4 fine-tunings of 3 steps, " in text
    assert told["runs"] == "2 pretraining, 0 steps and those of 2 in epochs; 9 fine-tuning, 27 steps"
    assert told["time"].endswith("without 4 run(s), see missing")
    for place in ("train", "photographs", "gone"):
        assert sum(line.startswith("missing") and str(tmp_path / place) in line for line in text.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_multiply_adds_follow_image_and_regions(kind: str, masks: bool) -> None:
    """The body's alone is the net's own count; the rest grows with the regions by what a region costs."""
    from detection.nets import build
    from detection.options import DetectorOptions

    def cost(regions: int, side: int = 64) -> int:
        sizes = (32, 64, 128, 256, 512) if kind == "fpn" else (64,)
        options = DetectorOptions(kind=kind, norm="frozen", freeze_at=0, masks=masks, anchor_sizes=sizes)
        options = options.model_copy(update={"roi": options.roi.model_copy(update={"batch": regions})})
        with torch.device("meta"):
            net = build_backbone(NetOptions(net="resnet", depth=18), 10)
            return count.macs(build(options, net, 5), side, side)

    with torch.device("meta"):
        body = macs(build_backbone(NetOptions(net="resnet", depth=18), 10), 64)
    assert cost(8) - cost(4) == cost(12) - cost(8) > 0
    assert cost(8, 128) - cost(8) == pytest.approx(3 * (cost(8) - 2 * (cost(8) - cost(4))), rel=1e-3)
    if kind == "fpn":
        assert cost(4) > body - 512 * 10
