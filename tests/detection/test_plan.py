"""The plan of a fine-tuning run: right about net, policy, data, steps and batch, and nothing is written."""

import json
from pathlib import Path

import pytest
import torch

from backbone import artifact
from backbone.errors import UserError
from detection.data.synthetic import SyntheticScenes
from detection.finetune import build_detector, load_backbone
from detection.plan import describe
from tests.detection.conftest import Make, coco, write_backbone, write_scenes


def lines(text: str) -> dict[str, str]:
    return {line[:11].strip(): line[11:] for line in text.splitlines() if line[:11].strip()}


def test_the_plan_says_what_will_be_done(small: Make, backbone: str, tmp_path: Path) -> None:
    chosen = small({"detector.freeze_at": 2, "scaling.num_workers": 2, "optim.lr": 0.01, "optim.lr_batch": 4})
    told = lines(describe(chosen))
    assert told["run"] == str(tmp_path / "runs" / "small")
    config = json.loads(Path(backbone, "config.json").read_text())
    assert told["backbone"] == f"resnet18 of {backbone}: weights {config['raybone']['weights_sha256'][:12]}"
    assert told["inputs"].startswith("BGR, mean 0.500 0.400 0.300")
    scenes = SyntheticScenes(0, 32, 64, (1, 2), "train")
    detector = build_detector(chosen, load_backbone(chosen)[0], scenes)
    total = sum(p.numel() for p in detector.parameters())
    trains = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert told["detector"] == f"faster-rcnn-fpn, 12 classes: {total:,} parameters"
    assert told["policy"].startswith("20 norms frozen, 0 trained; 2 of 5 parts fixed (stem, C2); ")
    assert f"{trains:,} of {total:,} parameters train" in told["policy"]
    objects = sum(len(scenes.objects(i).labels) for i in range(32))
    assert told["images"] == f"32 training with {objects} objects, 10 validation"
    assert told["steps"] == "12 of 8 images: 3.0 epochs"
    assert told["batch"] == "8 = 4 a micro-batch x 1 accumulated x 2 worker(s)"
    assert "0.02" in told["lr"]
    assert not (tmp_path / "runs").exists()


def test_a_plan_says_which_share_of_the_labels_is_trained_on(small: Make) -> None:
    elsewhere = {"published": "44.6 AP (a paper)", "data.augment.canvas": 64}
    told = lines(describe(small({"data.share": 0.25, **elsewhere})))
    assert told["published"] == "elsewhere: 44.6 AP (a paper)"
    assert told["jitter"].startswith("trained in 64x64 at 0.1 to 2 times what fits")
    scenes = SyntheticScenes(0, 32, 64, (1, 2), "train")
    assert told["images"].startswith("8 of 32 (data.share 0.25, ")
    assert 0 < int(told["images"].split(" training with ")[1].split()[0]) < scenes.num_objects().sum()
    assert told["steps"] == "12 of 8 images: 12.0 epochs"


def test_a_plan_from_scratch(small: Make) -> None:
    told = lines(describe(small({"from_scratch": True, "detector.norm": "trainable", "optim.micro_batch": 8})))
    assert told["backbone"].endswith("new weights")
    assert told["policy"].startswith("0 norms frozen, 20 trained; 0 of 5 parts fixed; ")


def test_a_plan_refuses_what_the_run_would(small: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not split"):
        describe(small({"scaling.num_workers": 3}))
    images = write_scenes(tmp_path / "data", "train", 4)
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    tree["annotations"] = [{k: v for k, v in a.items() if k != "segmentation"} for a in tree["annotations"]]
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"not every object of data\.train has a segmentation; .*detector\.masks false"):
        describe(small({"data": coco(images, images), "detector.masks": True}))
    with pytest.raises(UserError, match=r"paste: not every object of data\.train has a segmentation to cut by"):
        describe(small({"data": {**coco(images, images), "augment": {"paste": 0.5}}}))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        describe(small({"backbone": str(tmp_path)}))


def test_batch_norm_over_few_images_is_warned_of(small: Make) -> None:
    few = {"detector.norm": "trainable", "optim.micro_batch": 2}
    assert "batch norm would take its statistics over 2 image(s)" in lines(describe(small(few)))["warning"]
    assert "warning" not in lines(describe(small(few | {"optim.micro_batch": 8})))


def test_a_mean_image_is_for_whole_images_of_its_size(small: Make, tmp_path: Path) -> None:
    """A batch of a detector may have its size by chance; the channels' means are what detectors are judged with."""
    where = write_backbone(tmp_path / "pixels")
    net, inputs, block = artifact.load(where)
    other = inputs.with_mean_image(torch.rand(3, 64, 64))
    artifact.save(tmp_path / "mean", net, other, tuple(block["classes"]), {"train_images": 0})
    found = load_backbone(small({"backbone": str(tmp_path / "mean")}))[1]
    assert (found.mean_image, found.mean) == (None, other.mean)
