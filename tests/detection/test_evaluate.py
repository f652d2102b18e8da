"""Detecting and judging: normalised once, whatever the batch, on any data, with the numbers that training saw."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import detection
from backbone.cli import validate
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from backbone.training.ray_train import launch
from detection import artifact, scoring
from detection.data.contract import Categories
from detection.data.loader import EvalSet, eval_loader
from detection.data.options import CocoData
from detection.data.sources import open_val
from detection.evaluate import at_scale, detect_by_steps, evaluate, prepare, prepared, relabel
from detection.improvements.steps import Steps
from detection.nets import build
from detection.options import DetectorOptions, Roi
from detection.recipe import DetectorEvaluation
from tests.detection.conftest import ALONE, coco, write_scenes


def judge(trained: Path, output: Path, **fields: Any) -> dict[str, Any]:
    """What jobs/evaluate.py does, in this process."""
    payload = prepare(asked(trained, output, **fields))
    assert payload.url == str(output)
    return evaluate(payload, ALONE, lambda record: None)


def asked(trained: Path, output: Path | str, **fields: Any) -> DetectorEvaluation:
    return validate(
        DetectorEvaluation, {"detector": str(trained / "artifact"), "output": str(output), **fields}, "test"
    )


def val(folder: Path, **fields: Any) -> dict[str, Any]:
    """The `data:` section of an evaluation on what `write_scenes` has written; sizes are the detector's."""
    section = coco(folder, folder) | fields
    return {name: section[name] for name in section if name in ("source", "val", "cache", "workers", *fields)}


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_prepared_is_what_torchvision_does(order: str) -> None:
    """Normalised, then padded with zeros to a multiple of 32, by torchvision's own transform."""
    inputs = InputConvention(channel_order=order, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    generator = torch.Generator().manual_seed(0)
    sizes = [(50, 70), (64, 33), (31, 96)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    batch = torch.zeros(3, 3, 64, 96, dtype=torch.uint8)
    for image, place in zip(images, batch, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    mine = prepared(inputs, {"images": batch, "sizes": torch.tensor(sizes)})
    transform = GeneralizedRCNNTransform(1, 1, list(inputs.mean), list(inputs.std))
    theirs = transform.batch_images([transform.normalize(image / 255) for image in images], size_divisible=32)
    torch.testing.assert_close(mine, theirs.flip(1) if order == "BGR" else theirs, rtol=1e-6, atol=1e-6)
    wide = prepared(inputs, {"images": batch, "sizes": torch.tensor(sizes)}, channels_last=True)
    assert torch.equal(wide, mine)
    assert wide.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_images_on_the_host_are_normalised_as_on_a_device_to_the_bit(order: str) -> None:
    inputs = InputConvention(channel_order=order)
    images = torch.randint(0, 256, (2, 3, 80, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[50, 96], [64, 33]])
    for part in (images, images[:, :, :64, :96]):
        inside = torch.zeros(2, 1, *part.shape[-2:])
        for own, (height, width) in zip(inside, sizes.tolist(), strict=True):
            own[:, :height, :width] = 1
        expected = inputs.normalize(part) * inside
        found = prepared(inputs, {"images": part, "sizes": sizes})
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))  # signs of zeros, too


def test_nothing_is_normalised_twice() -> None:
    batch = {"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "sizes": torch.tensor([[32, 32]])}
    once = prepared(InputConvention(), batch)
    with pytest.raises(TypeError, match="normalise once only"):
        prepared(InputConvention(), {**batch, "images": once})


def test_a_run_is_evaluated_again_with_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    """Not only AP: every detection, to the digit; and stock pycocotools, given the folder, agrees."""
    written = json.loads((trained / "results" / "metrics.json").read_text())
    metrics = judge(trained, tmp_path / "out")
    same = ("bbox", "voc", "images", "detections", "notes")
    assert [metrics[name] for name in same] == [written[name] for name in same]
    assert metrics["bbox"]["AP"] > 0.03
    folders = (trained / "results", tmp_path / "out")
    one, two = (json.loads((folder / "detections.json").read_text()) for folder in folders)
    assert one == two
    assert len(one) > 30
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "out" / "ground_truth.json"))
        scores = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "detections.json")), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    mine = [-1 if metrics["bbox"][name] is None else metrics["bbox"][name] for name in scoring.STATS]
    np.testing.assert_allclose(mine, scores.stats, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [4, 7])
def test_ap_does_not_depend_on_the_batch(trained: Path, tmp_path: Path, batch: int) -> None:
    """24 images of six padded shapes. Padded to the largest of four, AP of this detector moves by a third."""
    one, many = (judge(trained, tmp_path / str(size), batch=size) for size in (1, batch))
    for name in scoring.STATS:
        assert (one["bbox"][name] is None) == (many["bbox"][name] is None)
        assert abs((one["bbox"][name] or 0) - (many["bbox"][name] or 0)) < 1e-3
    sizes = {(e["height"], e["width"]) for e in json.loads((tmp_path / "1/ground_truth.json").read_text())["images"]}
    assert len(sizes) > 8
    assert one["bbox"]["AP"] > 0.03


def test_options_of_compute_are_read(trained: Path, tmp_path: Path) -> None:
    """bf16 moves scores in the third digit; pycocotools itself gives what the fast one gives."""
    plain = judge(trained, tmp_path / "plain")
    rough = judge(trained, tmp_path / "rough", compute={"precision": "bf16"})
    slow = judge(trained, tmp_path / "slow", fast=False)
    scores = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("plain", "rough", "slow")]
    assert scores[0] != scores[1]
    assert abs(plain["bbox"]["AP50"] - rough["bbox"]["AP50"]) < 0.1
    assert scores[0] == scores[2]
    assert plain["bbox"]["AP"] == pytest.approx(slow["bbox"]["AP"], abs=1e-12)


def test_refined_and_voted(trained: Path, tmp_path: Path) -> None:
    """Other numbers, no worse by far, in a folder of their own; several images at once give the same ones."""
    payload = prepare(asked(trained, "", refine=True, vote=True))
    assert payload.url.endswith("-refine-vote")
    one, many = (judge(trained, tmp_path / str(n), refine=True, vote=True, batch=n) for n in (1, 5))
    plain = json.loads((trained / "results" / "metrics.json").read_text())
    assert one["bbox"] == many["bbox"] != plain["bbox"]
    assert one["bbox"]["AP"] > plain["bbox"]["AP"] / 2
    about = json.loads((tmp_path / "1" / "metrics.json").read_text())["provenance"]["evaluation"]
    assert (about["refine"], about["vote"]) == (True, True)


def test_mirrored_and_at_several_scales(trained: Path, tmp_path: Path) -> None:
    """The longer side goes along, or the second size would be the first again in half of these images."""
    payload = prepare(asked(trained, "", flip=True, scales=[64, 96]))
    assert payload.url.endswith("-flip-64-96")
    data = payload.options.data
    assert [at_scale(data, side).longer_side for side in (64, 96, 32)] == [96, 144, 48]
    metrics = judge(trained, tmp_path / "out", flip=True, scales=[64, 96])
    plain = json.loads((trained / "results" / "metrics.json").read_text())
    assert plain["bbox"]["AP"] / 3 < metrics["bbox"]["AP"] != plain["bbox"]["AP"]
    with pytest.raises(UserError, match=r"scales, data\.shorter_side: give one of them"):
        prepare(asked(trained, "", scales=[64, 96], data={"shorter_side": [64]}))
    with pytest.raises(UserError, match=r"maxout: .* is of kind fpn; it is for boxes of kind c4"):
        prepare(asked(trained, "", scales=[64, 96], maxout=True))


def test_maxout_makes_proposals_at_the_first_size(tmp_path: Path) -> None:
    """So twice that size as the pyramid is a look at it, and other sizes are not; through loader and all."""
    images = write_scenes(tmp_path, "val", 2)
    data = validate(CocoData, coco(images, images), "data")
    source = open_val(data)
    options = DetectorOptions(norm="frozen", freeze_at=0, kind="c4", anchor_sizes=(16, 32), roi=Roi(score=0.2))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        detector = build(options, build_net(NetOptions(net="resnet", depth=18, width=0.125), 1), 3).eval()
        torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.1)
    loaded = artifact.Loaded(detector, InputConvention(size=64), source.categories, 96, {})
    sizes = {side: list(eval_loader(EvalSet(source, at_scale(data, side)), range(2), 2)) for side in (48, 64, 96)}
    device, labels = torch.device("cpu"), [np.arange(4)]

    def found(sides: list[int], maxout: bool) -> np.ndarray:
        looks = zip(*(sizes[side] for side in sides), strict=True)
        autocast, steps = torch.autocast("cpu", enabled=False), Steps(maxout=maxout)
        one, bad = detect_by_steps([loaded], labels, looks, source.image_ids, device, autocast, steps)
        assert not bad
        assert {*one.image_ids.tolist()} == {*source.image_ids.tolist()}
        return one.boxes

    plain = found([64], False)
    np.testing.assert_array_equal(found([64, 64, 64], True), plain)
    other = found([64, 48, 96], True)
    assert other.shape != plain.shape or not np.array_equal(other, plain)


@pytest.fixture(scope="module")
def reordered(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same detector with its classes in another order."""
    loaded = artifact.load(trained / "artifact")
    heads, order = loaded.detector.roi_heads.box_predictor, [2, 0, 1]
    rows = torch.tensor([0, *(k + 1 for k in order)])
    with torch.no_grad():
        for layer, each in (
            (heads.cls_score, rows),
            (heads.bbox_pred, (rows[:, None] * 4 + torch.arange(4)).flatten()),
        ):
            for parameter in layer.parameters():
                parameter.copy_(parameter[each].clone())
    names, ids = ([values[k] for k in order] for values in (loaded.categories.names, loaded.categories.ids))
    url = str(tmp_path_factory.mktemp("reordered") / "artifact")
    sides = (loaded.inputs.size, loaded.longer_side)
    artifact.save(url, loaded.detector, loaded.inputs, Categories(tuple(names), tuple(ids)), sides, {"recipe": {}})
    return url


def test_an_ensemble_with_itself_is_the_detector(trained: Path, reordered: str, tmp_path: Path) -> None:
    """Classes by name; NMS has left no two boxes that fusion would join."""
    pair = [str(trained / "artifact"), reordered]
    payload = prepare(asked(trained, "", detector=pair))
    assert payload.url.endswith(f"-with-{artifact.load(reordered).block['weights_sha256'][:8]}")
    judge(trained, tmp_path / "out", detector=pair)
    one, two = (json.loads((f / "detections.json").read_text()) for f in (trained / "results", tmp_path / "out"))
    assert len(one) == len(two) > 30
    for rows in (one, two):
        rows.sort(key=lambda row: (row["image_id"], row["category_id"], *map(round, row["bbox"])))
    assert [row["category_id"] for row in one] == [row["category_id"] for row in two]
    np.testing.assert_allclose([row["score"] for row in two], [row["score"] for row in one], atol=1e-5)
    np.testing.assert_allclose([row["bbox"] for row in two], [row["bbox"] for row in one], atol=5e-3)
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())["provenance"]
    assert [one["url"] for one in (about["detector"], *about["ensemble"])] == pair


def test_detectors_that_do_not_go_together(trained: Path, reordered: str, tmp_path: Path) -> None:
    loaded = artifact.load(reordered)
    parts = (loaded.detector, loaded.inputs, loaded.categories)
    artifact.save(tmp_path / "small", *parts, (48, 96), {"recipe": {}})
    pair = [str(trained / "artifact"), str(tmp_path / "small")]
    with pytest.raises(UserError, match=r"small at 48 to 96; say at which to look, such as --data\.shorter_side 64"):
        prepare(asked(trained, "", detector=pair))
    assert prepare(asked(trained, "", detector=pair, data={"shorter_side": [64]})).options.detector == tuple(pair)
    with pytest.raises(UserError, match="names one twice"):
        asked(trained, "", detector=pair[:1] * 2)


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_give_the_same_numbers(
    trained: Path, tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a relative path means on them what it means here."""
    monkeypatch.chdir(trained.parent)
    recipe = asked(Path(trained.name), tmp_path / "two", scaling={"num_workers": 2})
    metrics = launch(evaluate, prepare(recipe), recipe.scaling)
    written = json.loads((trained / "results" / "metrics.json").read_text())
    assert metrics["bbox"] == written["bbox"]
    one, two = (json.loads((f / "detections.json").read_text()) for f in (trained / "results", tmp_path / "two"))
    assert one == two
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["provenance"]["workers"] == 2


@pytest.mark.ray
def test_more_gpus_than_there_are(trained: Path, tmp_path: Path, ray_cluster: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = asked(trained, tmp_path / "gpu", scaling={"num_workers": 1, "use_gpu": True})
    with pytest.raises(UserError, match="do not fit on the cluster"):
        launch(evaluate, prepare(recipe), recipe.scaling)


def test_a_detector_asked_says_what_its_evaluation_wrote(trained: Path) -> None:
    loaded = detection.load(trained / "artifact")
    source = open_val(validate(CocoData, loaded.block["provenance"]["recipe"]["data"], "data"))
    written = json.loads((trained / "results" / "detections.json").read_text())
    for image_id, found in zip(source.image_ids, detection.detect(loaded, map(source.image, range(6))), strict=False):
        rows = [row for row in written if row["image_id"] == image_id]
        assert len(found["scores"]) == len(rows)
        np.testing.assert_allclose(found["scores"], [row["score"] for row in rows], atol=1e-5)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
        np.testing.assert_allclose(found["boxes"], np.reshape(corners, (-1, 4)), atol=2e-3)
        assert [loaded.categories.ids[k - 1] for k in found["labels"]] == [row["category_id"] for row in rows]


def test_data_with_some_of_the_classes(trained: Path, tmp_path: Path) -> None:
    """Red alone, under another number: blue and green detections are left out, and red's AP is that among all."""
    images = write_scenes(tmp_path / "data", "train", 24)
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    tree["categories"] = [{"id": 99, "name": "red"}]
    tree["annotations"] = [{**a, "category_id": 99} for a in tree["annotations"] if a["category_id"] == 3]
    file.write_text(json.dumps(tree))
    metrics = judge(trained, tmp_path / "out", data=val(images))
    whole = json.loads((trained / "results" / "metrics.json").read_text())["bbox"]["per_class"]["red"]
    assert metrics["bbox"]["per_class"] == {"red": whole}
    assert whole["AP"] > 0
    assert {d["category_id"] for d in json.loads((tmp_path / "out" / "detections.json").read_text())} == {99}


def test_relabel() -> None:
    mine = Categories(("a", "b", "c", "d"), (4, 3, 2, 1))
    assert relabel(mine, Categories(("c", "a"), (7, 9))).tolist() == [0, 2, 0, 1, 0]
    with pytest.raises(UserError, match=r"2 class\(es\) that the detector was not trained on: zebra, yak; it knows a"):
        relabel(mine, Categories(("zebra", "a", "yak"), (1, 2, 3)))


def test_data_that_are_not_given_are_those_of_training(trained: Path, tmp_path: Path) -> None:
    payload = prepare(asked(trained, ""))
    digest = json.loads((trained / "results" / "metrics.json").read_text())["provenance"]["data"]["val"]
    assert payload.url == str(trained / f"results-{digest[:8]}")
    data = payload.options.data
    assert (data.source, data.shorter_side, data.longer_side, data.workers) == ("coco", (64,), 96, 0)
    changed = prepare(asked(trained, "", data={"shorter_side": [48]})).options.data
    assert (changed.val, changed.shorter_side) == (data.val, (48,))  # a size alone does not change what is judged
    other = val(write_scenes(tmp_path, "other", 4))
    sizes = prepare(asked(trained, tmp_path / "o", data=other)).options.data
    assert (sizes.val, sizes.shorter_side, sizes.longer_side) == (str(tmp_path / "other"), (64,), 96)


def unknown_class(folder: Path) -> dict:
    file = folder.parent / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"green"', '"zebra"'))
    return {}


def no_objects(folder: Path) -> dict:
    file = folder.parent / "annotations" / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    return {}


MISTAKES = [
    pytest.param(unknown_class, "not trained on: zebra; it knows", id="unknown class"),
    pytest.param(no_objects, "no objects at all", id="no objects"),
    pytest.param(lambda folder: {"val": str(folder / "nowhere")}, "nowhere", id="no data"),
    pytest.param(lambda folder: {"shorter_side": [128]}, r"longer_side 96 is below shorter_side 128", id="sizes"),
    pytest.param(lambda folder: {"source": "voc", "val": f"{folder}:test"}, "val:test|ImageSets", id="another format"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES)
def test_mistakes_are_named_before_anything_runs(
    trained: Path, tmp_path: Path, mistake: Callable, complaint: str
) -> None:
    folder = write_scenes(tmp_path / "data", "val", 4)
    with pytest.raises(UserError, match=complaint):
        prepare(asked(trained, tmp_path / "out", data=val(folder, **mistake(folder))))
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_stops_or_is_judged_as_empty(trained: Path, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "data", "val", 8)
    (folder / "3.jpg").write_bytes(b"no image")
    data = val(folder)
    with pytest.raises(UserError, match=r"3\.jpg.* set data\.on_bad: skip"):
        judge(trained, tmp_path / "stop", data=data)
    metrics = judge(trained, tmp_path / "skip", data={**data, "on_bad": "skip"}, batch=4)
    assert metrics["images"] == 8
    assert any("3.jpg" in note and "without detections" in note for note in metrics["notes"])
    assert 97 not in {d["image_id"] for d in json.loads((tmp_path / "skip" / "detections.json").read_text())}


def test_nothing_readable_is_no_result(trained: Path, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "data", "val", 4)
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of its 4 images can be read"):
        prepare(asked(trained, tmp_path / "out", data=val(folder, on_bad="skip")))
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(asked(trained, tmp_path / "file" / "out"))


def test_provenance_names_the_detector(trained: Path, tmp_path: Path) -> None:
    judge(trained, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())["provenance"]
    assert about["detector"]["weights_sha256"] == artifact.load(trained / "artifact").block["weights_sha256"]
    assert about["detector_provenance"]["steps"] == 80
