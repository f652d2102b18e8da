"""Cores that feed a GPU: by hand where it is arithmetic, beside the loader itself where it is measured."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backbone.cli import gpu_rate_of, load, validate
from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.stream import MicroBatches
from backbone.nets import build
from backbone.nets.count import macs
from backbone.training.feeding import H200, RECORDED, RESNET50, Feed, lines, measured, recorded, short, without_images
from backbone.training.plan import describe
from backbone.training.pretrain import open_data
from backbone.training.recipe import Recipe
from tests.conftest import ROOT, Run

RESULTS = ROOT / "docs/results"
MODERN = ROOT / "jobs/recipes/imagenet-modern/resnet50.yaml"
FEED = Feed(100.0, "a round number")


def on_gpus(**overrides: Any) -> Recipe:
    tree = {"data": {"source": "webdataset", "train": "a", "val": "b"}, "scaling": {"use_gpu": True}}
    return validate(Recipe, tree, "", overrides)


def test_cores_by_hand() -> None:
    recipe = on_gpus(**{"data.workers": 31, "scaling.cpus_per_worker": 31})
    (label, text), *_ = lines(recipe, FEED, RESNET50, 3010)
    assert label == "cores"
    assert text == "100 images/s a core (a round number); 8 GPUs of 3,010 images/s (as given) want 241 cores"


def test_a_net_is_not_small_for_its_images_are_at_first() -> None:
    """ResNet-50 does at 128 px a third of what it does at 224: that cores are short is said all the same."""
    grows = {"data.size": 224, "data.progressive": {"from_size": 128, "end": 4}}
    recipe = on_gpus(**grows)
    said = describe(recipe, 100_000, 1000, 1000, feed=FEED)
    assert "at most" not in said
    assert "warning    a GPU wants " in said
    (label, small), *more = lines(recipe, FEED, RESNET50 // 9, 0.0, RESNET50 // 3)
    assert (label, more) == ("cores", [])
    assert "want at most " in small


def test_what_is_short_is_said_with_the_words_that_mend_it() -> None:
    enough = on_gpus(**{"data.workers": 31, "scaling.cpus_per_worker": 31})
    assert short(enough, 31, 0, 2) == []
    assert short(enough, 31, 8, 248) == []
    (line,) = short(enough, 31, 8, 247)
    assert line.startswith("this machine's 8 GPU(s) want 248 cores of loading, it has 247")
    (line,) = short(on_gpus(**{"data.workers": 31}), 31, 0, 2)
    assert "scaling.cpus_per_worker 1: --data.workers 31 --scaling.cpus_per_worker 31" in line
    assert short(on_gpus(**{"scaling.use_gpu": False}), 31, 0, 2) == [], "on CPUs loading is a small part"
    (line,) = short(on_gpus(**{"data.remote_cpus": 8}), 31, 8, 2)
    assert line.startswith("data.remote_cpus 8 feed a GPU that wants 31 cores: --data.remote_cpus 31")
    assert short(on_gpus(**{"data.remote_cpus": 31}), 31, 8, 2) == []


def test_a_gpu_that_nobody_named_is_the_one_that_was_measured() -> None:
    recipe = load(Recipe, MODERN)
    with torch.device("meta"):
        multiply_adds = macs(build(recipe.model, 1000), 224)
    assert multiply_adds == RESNET50
    ((_, text), *_) = lines(recipe, FEED, multiply_adds)
    images = H200[recipe.compute.compile]
    assert f"8 GPUs of {images:,} images/s (ResNet-50" in text
    assert text.endswith(f"on an H200, as measured) want {math.ceil(8 * images / 100)} cores")
    ((_, text), *_) = lines(recipe, FEED, RESNET50 // 4)
    assert f"of {4 * images:,} images/s" in text
    assert f"by multiply-adds) want at most {math.ceil(8 * 4 * images / 100):,} cores" in text


def test_recorded_rates_are_the_files() -> None:
    rows = json.loads((RESULTS / "gpu_training.json").read_text())
    assert rows["hardware"] == "NVIDIA H200"
    by_loop = {row["loop"]: row["images/s"] for row in rows["rows"]}
    assert round(by_loop["raybone"]) == H200["none"]
    assert round(by_loop["raybone, compile default"]) == H200["default"]
    kinds = {
        "original files": "original files",
        "shards, 256 px JPEG": "JPEG shards",
        "shards, 256 px raw": "raw shards",
    }
    found: dict[str, dict[str, int]] = {}
    for row in json.loads((RESULTS / "input_augmentation.json").read_text())["rows"]:
        if row["loader"] == "raybone, exact":
            found.setdefault(row["augmentation"], {})[kinds[row["from"]]] = round(1000 / row["ms an image"])
    assert found == RECORDED


def test_of_images_that_are_not_there_what_was_recorded(run_job: Run) -> None:
    recipe = load(Recipe, MODERN).model_copy(update={"data": on_gpus(**{"data.augment.policy": "trivial"}).data})
    assert [feed.rate for feed in recorded(recipe.data)] == [1510, 2897]
    assert (
        "1,510 images/s a core from JPEG shards, 16 cores; 2,897 images/s a core from raw shards, 9"
        in without_images(recipe, 3000)
    )
    assert without_images(on_gpus(**{"data.augment.kind": "cifar"})) == "", "nobody measured that"
    words = ["--config", MODERN, "--data.train", "/none", "--data.val", "/none", "--dry-run"]
    done = run_job("pretrain", *words)
    assert done.returncode == 2
    assert done.stdout.startswith("cores      of 8 GPUs of 6,768 images/s (ResNet-50 compiled at 224 px on an H200")
    assert done.stderr.startswith("error: ")


def test_the_measured_rate_is_the_loaders(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny({"data.augment.kind": "modern", "data.workers": 0})
    train, _ = open_data(recipe.data, recipe.seed)
    feed = max((measured(train, recipe.data, recipe.seed, 0.3) for _ in range(2)), key=lambda one: one.rate)
    rates = []
    for _ in range(3):
        loader = train_loader(TrainSet(train, recipe.data, recipe.seed, (0, 0, 0)), MicroBatches(8, 8, 0, 1, 0, 40))
        began = time.process_time()
        images = sum(len(batch["labels"]) for batch in loader)
        assert images == 320
        rates.append(images / (time.process_time() - began))
    assert max(rates) / 3 < feed.rate < 3 * max(rates)
    assert f"{feed.rate:,.0f} images/s a core (measured here: rendered, modern" in describe(
        recipe, 160, 50, 12, None, feed
    )


def test_an_image_that_cannot_be_read_is_the_runs_to_refuse(tmp_path: Path) -> None:
    for file in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"):
        (tmp_path / file).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / file)
    data = {"source": "imagefolder", "train": f"{tmp_path}/train", "val": f"{tmp_path}/val", "size": 16}
    recipe = validate(Recipe, {"data": data}, "")
    train, _ = open_data(recipe.data, 0)
    assert measured(train, recipe.data, 0, 0.05).rate > 0
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    feed = measured(train, recipe.data, 0, 0.05)
    assert feed.rate == 0
    assert lines(recipe, feed, RESNET50) == [("cores", feed.how)]
    assert feed.how.startswith("not measured: ")


def test_resident_images_want_no_cores(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny({"data.augment.kind": "none", "data.resident": True})
    train, _ = open_data(recipe.data, recipe.seed)
    assert measured(train, recipe.data, recipe.seed).rate == 0
    assert lines(recipe, FEED, RESNET50)[0][1].startswith("none for loading: data.resident")


def test_the_rate_of_a_gpu_on_the_command_line(run_job: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_rate_of(["--seed", "1"]) == (["--seed", "1"], 0)
    assert gpu_rate_of(["--dry-run", "--gpu-rate=2500", "--seed", "1"]) == (["--dry-run", "--seed", "1"], 2500)
    for wrong in ("0", "-3", "fast", "inf"):
        with pytest.raises(SystemExit):
            gpu_rate_of(["--dry-run", "--gpu-rate", wrong])
    with pytest.raises(SystemExit):
        gpu_rate_of(["--gpu-rate", "3"])
    assert "error: --gpu-rate is read with --dry-run only" in capsys.readouterr().err
    words = ["--data.train_images", "64", "--scaling.use_gpu", "true", "--dry-run", "--gpu-rate", "1e6"]
    done = run_job("pretrain", *words)
    assert done.returncode == 0, done.stderr
    assert "8 GPUs of 1,000,000 images/s (as given) want " in done.stdout
    assert "warning    a GPU wants " in done.stdout
