"""Semantic segmentation through the jobs: judged, compared beside a detector of boxes, refused where it cannot go."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as rle
from torch.nn import functional as F

import detection
from backbone.cli import validate
from backbone.errors import UserError
from backbone.inputs import InputConvention
from detection import artifact
from detection.data.contract import Categories
from detection.data.loader import EvalSet, eval_loader
from detection.data.options import ScenesData
from detection.data.sources import open_val
from detection.data.synthetic import SyntheticScenes
from detection.detecting.options import Detecting
from detection.detecting.run import detect_all
from detection.evaluate import evaluate
from detection.evaluate import prepare as prepare_evaluation
from detection.gains import Gains, run
from detection.improvements.entry import Entry
from detection.improvements.entry import plan as plan_entry
from detection.interop.export import export
from detection.objective import DetectionAP
from detection.pixels import Pixels, mean_iou
from detection.plan import describe
from detection.recipe import DetectorEvaluation, Finetune
from detection.report.bootstrap import paired_draws
from detection.report.collect import write_report
from detection.report.stored import load_pixels
from detection.semantic import channels_of, confusion, gather_and_score, label_map, segment_batches
from tests.detection.conftest import ALONE, SMALL, Make, coco, write_scenes
from tests.detection.data.test_label_map import voc, write_voc
from tests.detection.test_finetune import SEMANTIC, folder
from tests.detection.test_finetune import run as train

CPU = torch.device("cpu")


def judge(url: Path, output: Path, **steps: Any) -> dict[str, Any]:
    asked = DetectorEvaluation(detector=str(url), output=str(output), **steps)
    return evaluate(prepare_evaluation(asked, lambda text: None), ALONE, lambda record: None)


def plain_miou(truth: list[np.ndarray], found: list[np.ndarray], classes: int) -> tuple[float, float, list[float]]:
    """Pixel by pixel, as it is defined."""
    right, union, there = [0] * classes, [0] * classes, [0] * classes
    judged = agreed = 0
    for one, other in zip(truth, found, strict=True):
        for t, f in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            if t == 255:
                continue
            judged += 1
            agreed += t == f
            there[t] += 1
            for c in {t, f}:
                union[c] += 1
            if t == f:
                right[t] += 1
    iou = [right[c] / union[c] if there[c] else float("nan") for c in range(classes)]
    return float(np.nanmean(iou)), agreed / judged, iou


class Noisy(torch.nn.Module):
    """Says of each pixel a class that the image and a generator give: right often, and wrong otherwise."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.said = classes, []

    def forward(self, images: torch.Tensor, sides: list[list[int]]) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(len(self.said))
        logits = torch.randn(len(images), self.classes, *images.shape[-2:], generator=generator)
        logits[:, 0] += 1.5
        outputs = [{"logits": each[:, :h, :w]} for each, (h, w) in zip(logits, sides, strict=True)]
        self.said += [each["logits"].argmax(0).numpy() for each in outputs]
        return outputs


class Voided(SyntheticScenes):
    """With a stripe that is ignored, and class 12 nowhere."""

    def label_map(self, i: int) -> np.ndarray:
        found = super().label_map(i)
        found[:, 10:14] = 255
        found[found == 12] = 0
        return found


def test_miou_and_accuracy_are_those_of_a_plain_loop_and_ignored_pixels_count_nowhere() -> None:
    source = Voided(0, 6, 48, (1, 3), "val")
    data = ScenesData(val_images=6, render=48, shorter_side=(48,), longer_side=48, workers=0)
    model = Noisy(13).eval()
    batches = eval_loader(EvalSet(source, data), range(6), 2)
    inputs = InputConvention(size=48)
    seen, bad = segment_batches(model, inputs, batches, source, CPU, torch.autocast("cpu", enabled=False))
    assert not bad
    scored = gather_and_score(seen, source, ALONE)
    truth = [source.label_map(i) for i in range(6)]
    miou, accuracy, iou = plain_miou(truth, model.said, 13)
    own = scored.metrics["semantic"]
    assert own["mIoU"] == pytest.approx(miou, rel=1e-12)
    assert own["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    told = [np.nan if one["IoU"] is None else one["IoU"] for one in own["per_class"].values()]
    assert told == pytest.approx(iou, nan_ok=True)
    assert np.isnan(told[12])
    assert np.isfinite(told[0])
    assert sum(one["pixels"] for one in own["per_class"].values()) == 6 * 48 * 44
    assert "no ground truth for" in scored.metrics["notes"][0]
    # What is found under the stripe changes nothing.
    other = [np.where(t == 255, 5, f) for t, f in zip(truth, model.said, strict=True)]
    assert all(
        (confusion(t, a, 13) == confusion(t, b, 13)).all() for t, a, b in zip(truth, model.said, other, strict=True)
    )
    # What is written says it all again: regions painted over background, and the crowd ignored.
    again = []
    for image in scored.ground_truth["images"]:
        found = np.zeros((48, 48), np.uint8)
        for one in scored.detections:
            if one["image_id"] == image["id"]:
                found[rle.decode(one["segmentation"]) > 0] = one["category_id"]
                assert 0 < one["score"] <= 1
        again.append(found)
    assert all((a == b).all() for a, b in zip(again, model.said, strict=True))
    ignored = [a for a in scored.ground_truth["annotations"] if a["iscrowd"]]
    assert [a["area"] for a in ignored] == [48 * 4] * 6


def test_draws_are_those_of_images_that_are_there_so_often() -> None:
    rng = np.random.default_rng(0)
    truth = [rng.integers(0, 4, (9, 7)).astype(np.uint8) for _ in range(5)]
    truth[2][:] = 1
    rows = []
    for shift in (0.3, 0.6):
        found = [np.where(rng.random(t.shape) < shift, rng.integers(0, 5, t.shape), t).astype(np.uint8) for t in truth]
        counts = np.stack([confusion(t, f, 5) for t, f in zip(truth, found, strict=True)])
        pixels = Pixels(np.arange(5), np.einsum("nii->ni", counts), counts.sum(2), counts.sum(1))
        rows.append((pixels, found))
    weights = np.array([[1, 2], [1, 0], [1, 0], [1, 3], [1, 0]], float)
    for pixels, found in rows:
        drawn = mean_iou(pixels, weights)
        for k, times in enumerate(weights.T.astype(int)):
            often = [i for i, n in enumerate(times) for _ in range(n)]
            miou, accuracy, _ = plain_miou([truth[i] for i in often], [found[i] for i in often], 5)
            assert drawn[:, k] == pytest.approx([miou, accuracy], rel=1e-12)
    both = paired_draws({"a": [rows[0][0]], "b": [rows[1][0]]}, 50, of=mean_iou)
    assert both["a"].shape == (2, 1, 51)
    assert (both["a"][0, 0] > both["b"][0, 0]).all()
    other = Pixels(np.arange(5), rows[0][0].right, rows[0][0].truth + 1, rows[0][0].found)
    with pytest.raises(UserError, match="judged on other images or objects"):
        paired_draws({"a": [rows[0][0]], "b": [other]}, 50, of=mean_iou)


@pytest.mark.parametrize("classes", [5, 16, 150])
def test_a_label_map_is_that_of_all_classes_at_once_in_a_part_of_the_memory(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, largest = torch.randn(classes, 12, 16, generator=torch.Generator().manual_seed(0)) * 3, 0
    whole = F.interpolate(logits[None], (90, 121), mode="bilinear", align_corners=False)[0]

    def seen(*args: Any, **more: Any) -> torch.Tensor:
        nonlocal largest
        found = interpolate(*args, **more)
        largest = max(largest, found.numel())
        return found

    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", seen)
    labels, sure = label_map(logits, (90, 121))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, whole.argmax(0).numpy())
    np.testing.assert_allclose(sure, whole.softmax(0).amax(0), rtol=1e-4)
    assert 0 < largest <= 16 * 90 * 121


def test_classes_of_the_data_are_found_by_name() -> None:
    mine, theirs = Categories(("a", "b", "c"), (1, 2, 3)), Categories(("c", "a"), (7, 9))
    assert channels_of(mine, theirs) == [0, 3, 1]


def test_rows_beside_a_detector_of_boxes_and_what_follows(tmp_path: Path, backbone: str) -> None:
    images = write_scenes(tmp_path / "data", "train", 12)
    for name, detector in (("boxes", SMALL["detector"]), ("pixels", SEMANTIC)):
        tree = {**SMALL, "detector": detector, "data": coco(images, images)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    asked = validate(
        Gains,
        {
            "name": "compare",
            "baseline": "none",
            "finetune": {name: str(tmp_path / f"{name}.yaml") for name in ("boxes", "pixels")},
            "finetune_with": {"schedule": {"total": 2}},
            "rows": {"given": {"artifact": backbone}, "none": {"scratch": "given"}},
            "storage": str(tmp_path / "runs"),
            "resamples": 100,
        },
        "gains",
    )
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert not failed
    assert "semantic-fpn on resnet18: 20 norms frozen, 7 trained; 1 of 5 parts fixed (stem); " in "\n".join(said)
    place, markdown = write_report(asked, todo, "")
    report = json.loads(Path(place, "report.json").read_text())
    assert [part["main"] for part in report["blocks"]["pixels"]["parts"]] == ["mIoU"]
    assert report["orders"][0]["of"] == ["boxes", "pixels"]
    assert "given: mIoU " in markdown
    page = Path(place, "pixels", "report.html").read_text()
    assert "Pixels: regions beside ground truth" in page
    assert page.count('<svg class="picture"') >= 6
    assert "The paper, beside" not in page
    assert "The paper, beside" in Path(place, "boxes", "report.html").read_text()
    text = Path(place, "pixels", "report.md").read_text()
    assert "| Backbone | mIoU | pixel accuracy | Gain in mIoU | Relative |" in text
    assert "AP50" not in text

    made = tmp_path / "runs" / "compare-given-pixels-seed0"
    written = json.loads((made / "results" / "metrics.json").read_text())
    row = next(row for row in report["blocks"]["pixels"]["rows"] if row["label"] == "given")
    assert row["mIoU"]["value"] == pytest.approx(written["semantic"]["mIoU"])
    assert list(written["semantic"]["per_class"]) == ["background", "red", "blue", "green"]  # by their ids
    assert mean_iou(load_pixels(str(made / "results")), np.ones((12, 1)))[0, 0] == pytest.approx(row["mIoU"]["value"])
    again = judge(made / "artifact", tmp_path / "again", batch=4)
    assert again["semantic"] == written["semantic"]
    for steps, word in (({"flip": True}, "flip"), ({"vote": True}, "vote"), ({"scales": [48, 64]}, "48, 64")):
        with pytest.raises(UserError, match=rf"{word}: .* is of kind semantic, and these steps are for detectors of"):
            judge(made / "artifact", tmp_path / "never", **steps)
    with pytest.raises(UserError, match=r"fast: .* is of kind semantic, whose pixels no scorer of boxes counts"):
        judge(made / "artifact", tmp_path / "never", fast=False)
    boxes = tmp_path / "runs" / "compare-given-boxes-seed0" / "artifact"
    with pytest.raises(UserError, match="is of kind semantic, which no other can be fused with; name it alone"):
        evaluate(
            prepare_evaluation(DetectorEvaluation(detector=(str(boxes), str(made / "artifact")))), ALONE, lambda r: None
        )
    with pytest.raises(UserError, match="is of kind semantic, which classifies pixels and finds no objects"):
        detect_all(Detecting(detector=str(made / "artifact"), images=str(images), output=str(tmp_path / "found")))
    for to in ("onnx", "torchvision-detection"):
        with pytest.raises(UserError, match=f"is of kind semantic, and {to} takes detectors of boxes alone"):
            export(str(made / "artifact"), to, str(tmp_path / "exported"))

    loaded = artifact.load(made / "artifact")
    todo_recipe = next(recipe for recipe in todo.finetunings.values() if recipe.semantic)
    source = open_val(todo_recipe.data, maps=True)
    maps = detection.segment(loaded, [source.image(i) for i in range(12)])
    counts = sum(confusion(source.label_map(i), maps[i], 4) for i in range(12))
    assert np.trace(counts) / counts.sum() == pytest.approx(written["semantic"]["accuracy"], abs=1e-12)
    with pytest.raises(UserError, match=r"kind semantic finds no boxes: call detection\.segment with it"):
        detection.detect(loaded, [source.image(0)])
    with pytest.raises(UserError, match=r"faster-rcnn-fpn finds boxes: call detection\.detect with it"):
        detection.segment(artifact.load(boxes), [source.image(0)])


def test_pascal_vocs_segmentation_is_trained_on_and_judged(tmp_path: Path, small: Make) -> None:
    root = write_voc(write_voc(tmp_path / "VOC", "train", 8), "val", 3, seed=1)
    recipe = small({"detector": SEMANTIC, "data": voc(root, workers=0).model_dump(), "schedule.total": 2})
    train(recipe)
    written = json.loads((folder(recipe) / "results" / "metrics.json").read_text())
    truth = sum((np.array(one) != 255).sum() for one in map(_png, sorted((root / "SegmentationClass").glob("val*"))))
    assert sum(one["pixels"] for one in written["semantic"]["per_class"].values()) == truth
    assert list(written["semantic"]["per_class"])[:2] == ["background", "aeroplane"]


def _png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_it_learns(tmp_path: Path, backbone: str) -> None:
    """60 steps on 8 scenes of three colours, judged on the same: better than background alone, as most pixels are."""
    images = write_scenes(tmp_path / "data", "train", 8)
    changes = {
        "backbone": backbone,
        "run.storage": str(tmp_path),
        "detector": SEMANTIC | {"norm": "trainable", "freeze_at": 0},
        "data": coco(images, images, augment={"flip": 0.0}),
        "optim.lr": 0.1,
        "optim.micro_batch": 8,
        "schedule.total": 60,
        "run.eval_every": 100,
        "run.checkpoint_every": 0,
    }
    recipe = validate(Finetune, {**SMALL}, "small", changes)
    train(recipe)
    pixels = load_pixels(str(folder(recipe) / "results"))
    background = pixels.truth[:, 0].sum() / pixels.truth.sum() / 4
    assert background < 0.25
    assert mean_iou(pixels, np.ones((8, 1)))[0, 0] > background + 0.1


def test_what_asks_for_boxes_refuses_it(tmp_path: Path) -> None:
    file = tmp_path / "pixels.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "detector": SEMANTIC}))
    with pytest.raises(UserError, match=r"objectives AP: .*pixels\.yaml is of kind semantic, which has mIoU and no AP"):
        DetectionAP({**SMALL, "detector": SEMANTIC}, str(file), ("AP",)).check()
    asked = {"name": "table", "finetune": str(file), "backbone": "some", "steps": [{"label": "flip", "flip": True}]}
    with pytest.raises(UserError, match="is of kind semantic, and the steps of a table are for detectors of boxes"):
        plan_entry(validate(Entry, asked, "entry"))


def test_the_plan_and_what_has_no_maps(small: Make) -> None:
    lines = describe(small({"detector": SEMANTIC})).splitlines()
    assert any(line.startswith("detector   semantic-fpn, 12 classes: ") for line in lines)
    with pytest.raises(UserError, match=r"detector\.kind semantic: ImageNet DET has boxes alone"):
        small({"detector": SEMANTIC, "data": {"source": "det", "train": "ILSVRC:train", "val": "ILSVRC:val"}})
    with pytest.raises(UserError, match=r"data\.keep_empty false: is not read with detector\.kind semantic and source"):
        small({"detector": SEMANTIC, "data": {"source": "voc", "train": "a:b", "val": "a:c", "keep_empty": False}})
