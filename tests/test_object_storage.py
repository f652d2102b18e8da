"""The whole path with nothing on a disk but caches: shards, runs, artifacts, annotations and reports in a bucket."""

from pathlib import Path
from typing import Any

import pytest

from backbone.artifact import read_config
from backbone.cli import validate
from backbone.data.prepare.options import Prepare
from backbone.data.prepare.prepare import prepare
from backbone.interop.export import export
from backbone.job import submit
from backbone.storage import filesystem, names_in
from backbone.training.pretrain import PRETRAIN
from backbone.training.recipe import Recipe
from detection import gains
from detection.detecting.options import Detecting
from detection.detecting.run import detect_all
from detection.evaluate import EVALUATE
from detection.finetune import FINETUNE
from detection.recipe import DetectorEvaluation, Finetune
from detection.report.collect import write_report
from tests.conftest import TINY
from tests.detection.conftest import SMALL, write_scenes
from tests.object_store import Bucket


def tiny_on(s3: Bucket, cache: Path, **overrides: Any) -> Recipe:
    data = {"source": "webdataset", "train": f"{s3.url}/shards/train", "val": f"{s3.url}/shards/val"}
    tree = TINY | {
        "model": {"net": "resnet", "depth": 18, "width": 0.125},
        "data": {"size": 32, "crop_pct": 1.0, "workers": 0, "augment": {"kind": "cifar"}, "cache": str(cache)} | data,
    }
    return validate(Recipe, tree, "tiny", {"run.storage": f"{s3.url}/runs", "schedule.total": 8, **overrides})


def write_tiny_shards(s3: Bucket) -> None:
    for split in ("train", "val"):
        told = {"source": "synthetic", "split": split, "num_images": 48, "size": 40, "images_per_shard": 24}
        prepare(Prepare(**told, output=f"{s3.url}/shards/{split}", num_workers=0), print)


def test_everything_in_a_bucket(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "here"
    nowhere.mkdir()
    monkeypatch.chdir(nowhere)
    cache = tmp_path / "cache"
    write_tiny_shards(s3)

    def stop(record: dict) -> None:
        if record["kind"] == "log" and record["step"] >= 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        submit(PRETRAIN, tiny_on(s3, cache, **{"run.checkpoint_every": 2}), watch=stop)
    said: list[str] = []
    recipe = tiny_on(s3, cache, **{"run.checkpoint_every": 2})
    pretrained = submit(PRETRAIN, recipe, watch=lambda record: said.append(record.get("text", "")))
    assert any(text.startswith("resuming at step") for text in said)
    whole = submit(PRETRAIN, tiny_on(s3, cache, **{"name": "whole"}))
    digests = [read_config(one.artifact)["raybone"]["weights_sha256"] for one in (pretrained, whole)]
    assert digests[0] == digests[1]
    assert {"log.txt", "tensorboard", "history.json", "curves.png"} <= names_in(pretrained.url)

    for split, count in (("train", 8), ("val", 5)):
        write_scenes(tmp_path / "scenes", split, count)
    fs, bucket = filesystem(s3.url)
    fs.put(f"{tmp_path / 'scenes'}/", f"{bucket}/coco/", recursive=True)
    coco = {"source": "coco", "train": f"{s3.url}/coco/train", "val": f"{s3.url}/coco/val", "cache": str(cache)}
    small = SMALL | {"data": coco | {"shorter_side": [64], "longer_side": 96, "workers": 0}}
    places = {"run.storage": f"{s3.url}/runs", "schedule.total": 2, "backbone": pretrained.artifact}
    tuned = submit(FINETUNE, validate(Finetune, small, "small", places))
    assert tuned.results["images"] == 5

    judged = {"detector": [tuned.artifact], "data": small["data"] | {"train": ""}, "scaling": {"num_workers": 0}}
    again = submit(EVALUATE, validate(DetectorEvaluation, judged, "judged", {}))
    assert again.results["bbox"]["AP"] == tuned.results["bbox"]["AP"]

    detect_all(Detecting(detector=tuned.artifact, images=coco["val"], output=f"{s3.url}/found", num_workers=0))
    assert {"detections.json", "report.html"} <= names_in(f"{s3.url}/found")
    export(pretrained.artifact, "transformers", f"{s3.url}/exported")
    assert {"config.json", "model.safetensors"} <= names_in(f"{s3.url}/exported")

    rows = {"one": {"artifact": pretrained.artifact}, "other": {"artifact": whole.artifact}}
    detector = tmp_path / "small.yaml"
    detector.write_text(
        validate(Finetune, small, "small", places).model_copy(update={"backbone": ""}).model_dump_json()
    )
    told = {"name": "compared", "rows": rows, "baseline": "one", "finetune": str(detector), "resamples": 100}
    recipe = gains.Gains.model_validate({**told, "storage": f"{s3.url}/runs"})
    todo, failed = gains.run(recipe)
    folder, _ = write_report(recipe, todo, "", failed)
    assert folder == f"{s3.url}/runs/compared"
    assert "report.html" in names_in(folder)
    assert not list(nowhere.iterdir())
