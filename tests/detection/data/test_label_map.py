"""Label maps: painted from masks, carried through augmentation, and read from SegmentationClass."""

import json
import pickle
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from PIL import Image

from backbone.cli import validate
from backbone.data.ahead import read_ahead
from backbone.errors import StorageError, UserError
from detection.data.coco import open_coco
from detection.data.label_map import painted
from detection.data.loader import SemanticTrainSet
from detection.data.options import DetectionAugment, ScenesData, VocData
from detection.data.share import Share
from detection.data.sources import open_sources
from detection.data.synthetic import SyntheticScenes
from detection.data.voc_segments import open_segments
from detection.recipe import Finetune
from tests.detection.conftest import coco, write_scenes


def square(side: int, x: int, y: int) -> np.ndarray:
    mask = np.zeros((10, 10), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def test_the_smaller_object_is_on_top_and_crowds_lie_below_all() -> None:
    masks = [square(3, 1, 1), square(6, 0, 0), square(2, 8, 8), square(1, 9, 9)]
    found = painted(10, 10, masks, [1, 2, 3, 255])
    assert found.dtype == np.uint8
    assert (found == 1).sum() == 9  # on top of the larger one, though it comes first
    assert (found == 2).sum() == 36 - 9
    assert (found == 3).sum() == 4  # on top of the crowd, though that is smaller
    assert (found == 255).sum() == 0
    assert (painted(10, 10, [square(4, 0, 0), square(4, 2, 0)], [1, 2])[0] == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0]).all()
    assert not painted(10, 10, [], []).any()


def test_cocos_crowds_are_ignored(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path, "train", 4)
    file = tmp_path / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    image = tree["images"][0]
    crowd = {"size": [image["height"], image["width"]], "counts": [0, image["height"] * image["width"]]}
    own = [a for a in tree["annotations"] if a["image_id"] == image["id"]]
    tree["annotations"].append({**own[0], "id": 99, "iscrowd": 1, "segmentation": crowd})
    file.write_text(json.dumps(tree))
    source = open_coco(str(folder), cache=str(tmp_path / "cache"))
    i = source.image_ids.tolist().index(image["id"])
    found = source.label_map(i)
    objects = np.zeros(found.shape, bool)
    for one in own:
        x, y, w, h = one["bbox"]
        objects[y : y + h, x : x + w] = True
    assert (found[~objects] == 255).all()
    assert (found[objects] < 255).all()
    assert (source.label_map(1 - i) < 4).all()


def test_a_share_and_scenes_have_the_maps_of_their_masks() -> None:
    scenes = SyntheticScenes(0, 8, 64, (2, 4), "train")
    share = Share(scenes, 0.5)
    for i, image_id in enumerate(share.image_ids.tolist()):
        objects = share.objects(i, masks=True)
        covered = np.zeros((64, 64), bool)
        for mask in objects.masks:
            covered |= mask > 0
        found = share.label_map(i)
        assert ((found > 0) == covered).all()
        assert set(np.unique(found)) - {0} <= set(objects.labels.tolist())
        assert (found == scenes.label_map(image_id - 1)).all()


def test_a_map_goes_with_its_image_through_augmentation() -> None:
    """Objects of one colour each: wherever the image shows it, the map says the class; and the padding is ignored."""

    class Coloured(SyntheticScenes):
        def image(self, i: int) -> np.ndarray:
            return np.repeat(20 * self.label_map(i)[:, :, None], 3, axis=2)[: 64 - 8 * (i % 2)]

        def label_map(self, i: int) -> np.ndarray:
            return super().label_map(i)[: 64 - 8 * (i % 2)]

    source = Coloured(0, 8, 64, (1, 3), "train")
    source.sizes[1::2, 0] = 56
    augment = DetectionAugment(flip=0.5, crop=1.0)
    data = ScenesData(train_images=8, render=64, shorter_side=(96, 128), longer_side=160, augment=augment)
    batch = SemanticTrainSet(source, data, 3, 8, 8, False).make(range(8))
    again = SemanticTrainSet(source, data, 3, 8, 8, False).make(range(8))
    assert (batch["classes"] == again["classes"]).all()
    images, classes = batch["images"].numpy()[:, 0].astype(int), batch["classes"].numpy()
    assert classes.shape == images.shape
    seen = set[int]()
    for image, own, (height, width) in zip(images, classes, batch["sides"], strict=True):
        assert (own[height:] == 255).all()
        assert (own[:, width:] == 255).all()
        inside, pixels = own[:height, :width], image[:height, :width]
        assert (inside < 255).all()
        kernel = np.ones((5, 5), np.uint8)
        flat = cv2.erode(pixels.astype(np.uint8), kernel) == cv2.dilate(pixels.astype(np.uint8), kernel)
        assert (pixels[flat] == 20 * inside[flat].astype(int)).all()
        seen |= set(inside[flat].tolist())
    assert len(seen) > 4
    assert len({own[:h, :w].tobytes() for own, (h, w) in zip(classes, batch["sides"], strict=True)}) == 8


PALETTE = [channel for k in range(256) for channel in (k * 37 % 256, k * 91 % 256, k * 7 % 256)]


def write_voc(root: Path, split: str, count: int, seed: int = 0, most: int = 3) -> Path:
    """Images with rectangles of classes 1 to `most` and void borders, as Pascal VOC lays them out."""
    rng = np.random.default_rng(seed)
    for folder in ("ImageSets/Segmentation", "SegmentationClass", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{split}{i}" for i in range(count)]
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        classes = np.zeros((48 + 8 * (i % 2), 64), np.uint8)
        for _ in range(2):
            label, (x, y) = int(rng.integers(1, most + 1)), rng.integers(2, 20, 2)
            classes[y : y + 22, x : x + 30] = 255
            classes[y + 1 : y + 21, x + 1 : x + 29] = label
        image = rng.integers(0, 40, (*classes.shape, 3)).astype(np.uint8)
        for label in range(1, most + 1):
            image[classes == label] += np.array([(30, 60, 200), (200, 40, 30), (20, 200, 60)][label % 3], np.uint8)
        png = Image.fromarray(classes, "P")
        png.putpalette(PALETTE)
        png.save(root / "SegmentationClass" / f"{name}.png")
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    return root


def voc(root: Path, **fields: object) -> VocData:
    places = {"train": f"{root}:train", "val": f"{root}:val", "cache": str(root / "cache")}
    return VocData.model_validate({"source": "voc", **places, "shorter_side": (64,), "longer_side": 96, **fields})


def test_pascal_vocs_maps_are_read_as_they_are(tmp_path: Path) -> None:
    root = write_voc(write_voc(tmp_path / "VOC", "train", 4), "val", 3, seed=1)
    train, val = open_sources(voc(root), maps=True)
    assert len(train) == 4
    assert len(val) == 3
    assert train.categories.names[14] == "person"
    assert len(train.categories) == 20
    for source in (train, pickle.loads(pickle.dumps(train))):
        for i in range(4):
            stored = np.array(Image.open(root / "SegmentationClass" / f"train{i}.png"))
            assert (source.label_map(i) == stored).all()
            assert source.image(i).shape[:2] == stored.shape == tuple(source.sizes[i])
            objects = source.objects(i, masks=True)
            assert objects.labels.tolist() == [k for k in np.unique(stored).tolist() if k not in (0, 255)]
            assert len(objects.labels) == source.num_objects()[i]
            for label, mask, box in zip(objects.labels, objects.masks, objects.boxes, strict=True):
                assert (mask == (stored == label)).all()
                y, x = np.nonzero(mask)
                assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert len(open_sources(voc(root, share=0.5), maps=True)[0]) == 2
    fingerprint = train.fingerprint
    assert open_sources(voc(root), maps=True)[0].fingerprint == fingerprint
    changed = Image.open(root / "SegmentationClass" / "train0.png")
    changed.putpixel((0, 0), 2)
    changed.save(root / "SegmentationClass" / "train0.png")
    renewed = open_sources(voc(root), maps=True)[0]
    assert renewed.fingerprint != fingerprint
    assert renewed.label_map(0)[0, 0] == 2


def test_what_is_wrong_with_pascal_vocs_maps_is_named(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC", "train", 2)
    cache = str(tmp_path / "cache")
    png = root / "SegmentationClass" / "train1.png"

    def says(text: str) -> None:
        with pytest.raises(UserError, match=text):
            open_segments(f"{root}:train", cache)

    classes = np.array(Image.open(png))
    Image.fromarray(np.where(classes == 0, 21, classes).astype(np.uint8), "L").save(png)
    says(r"train1\.png: 21 is the number of no class; they are 0 background, 1 aeroplane to 20 tvmonitor, and 255")
    (root / "labelmap.txt").write_text(
        "# label:color_rgb\nbackground:0,0,0::\n" + "\n".join(f"c{k}" for k in range(21))
    )
    open_segments(f"{root}:train", cache)
    assert open_segments(f"{root}:train", cache).categories.names[20] == "c20"
    named = (root / "labelmap.txt").read_text()
    (root / "labelmap.txt").write_text(f"{named}\nignored:224,224,192::\n")
    assert open_segments(f"{root}:train", cache).categories.names[20] == "c20"
    (root / "labelmap.txt").write_text(named.replace("c4\n", "ignored:224,224,192::\nc4\n"))
    says(r"labelmap\.txt: ignored stands before c4, whose number is its place in the list")
    (root / "labelmap.txt").write_bytes(named.replace("c4", "v\xe9lo").encode("latin-1"))
    says(r"labelmap\.txt: not a list of names: .*UTF-8")
    (root / "labelmap.txt").write_text(named, "utf-8-sig")  # with a byte order mark
    Image.open(png).convert("RGB").save(png)
    says(r"train1\.png: holds colours \(mode RGB\), not numbers of classes")
    png.write_bytes(b"no image")
    says(r"train1\.png: cannot be read")
    png.unlink()
    says(r"train1\.png: No such file or directory; detector\.kind semantic needs a PNG of SegmentationClass for every")
    (root / "JPEGImages" / "train0.jpg").unlink()
    says(r"train0\.jpg: is missing, and 1 image")
    with pytest.raises(UserError, match=r"ImageSets/Segmentation/val\.txt: .*there are train"):
        open_segments(f"{root}:val", cache)
    (root / "ImageSets/Segmentation/train.txt").unlink()
    (root / "ImageSets/Segmentation").rmdir()
    says("a folder of Pascal VOC holds ImageSets/Segmentation, SegmentationClass and JPEGImages")


def test_a_store_that_fails_is_no_missing_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_voc(tmp_path / "VOC", "train", 2)
    source = open_segments(f"{root}:train", str(tmp_path / "cache"))

    def refused(folder: str, file: str) -> bytes:
        raise StorageError(f"{folder}/{file}: access denied")

    monkeypatch.setattr("detection.data.voc_segments.read", refused)
    with pytest.raises(StorageError, match="access denied"):
        source.label_map(0)


def test_images_at_urls_are_read_ahead(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC", "train", 3)
    fs = fsspec.filesystem("memory")
    for file in root.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"/voc-ahead/{file.relative_to(root).as_posix()}", file.read_bytes())
    here, there = (open_segments(f"{place}:train", str(tmp_path / "cache")) for place in (root, "memory://voc-ahead"))
    read_ahead(there, [2, 0])
    assert len(there._ahead._begun) == 2
    assert all(future.result() for future in there._ahead._begun.values())
    fs.rm("/voc-ahead/JPEGImages/train2.jpg")  # so that it can only have been read before
    assert np.array_equal(there.image(2), here.image(2))
    assert np.array_equal(there.image(1), here.image(1))


def test_objects_without_masks_have_no_map(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path, "train", 4)
    file = tmp_path / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    del tree["annotations"][0]["segmentation"]
    file.write_text(json.dumps(tree))

    asked = {"detector": {"kind": "semantic", "norm": "frozen", "freeze_at": 1}, "data": coco(folder, folder)}
    recipe = validate(Finetune, asked, "recipe", {"backbone": "some"})
    with pytest.raises(
        UserError, match=r"data\.train: objects without a segmentation, so that their pixels have no class"
    ):
        open_sources(recipe.data, recipe.semantic)
