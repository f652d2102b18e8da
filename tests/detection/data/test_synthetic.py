"""Rendered scenes as annotated images: against their masks and pycocotools, and apart from pretraining's."""

import pickle

import numpy as np
import pytest
from pycocotools import mask as rle

from backbone.data.synthetic import CLASSES, SyntheticSource
from detection.data.synthetic import SyntheticScenes


@pytest.fixture
def source() -> SyntheticScenes:
    return SyntheticScenes(3, 12, 64, (1, 4), "val")


def test_objects_and_ground_truth_agree(source: SyntheticScenes) -> None:
    truth = source.ground_truth()
    assert [one["id"] for one in truth["annotations"]] == list(range(1, source.num_objects().sum() + 1))
    assert {one["name"] for one in truth["categories"]} == set(CLASSES)
    for i, image in enumerate(truth["images"]):
        annotations = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        objects = source.objects(i, masks=True)
        assert source.image(i).shape == (image["height"], image["width"], 3)
        assert source.num_objects()[i] == len(objects.boxes) == len(objects.masks) == len(annotations)
        for box, label, mask, one in zip(*objects, annotations, strict=True):
            x, y, w, h = one["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            assert source.categories.ids[label - 1] == one["category_id"]
            assert np.array_equal(rle.decode(one["segmentation"]), mask)
            assert rle.toBbox(one["segmentation"]).tolist() == one["bbox"]
            assert one["area"] == rle.area(one["segmentation"])
    part = source.ground_truth(np.array([5]))
    assert [one["id"] for one in part["images"]] == [6]
    assert {one["image_id"] for one in part["annotations"]} == {6}


def test_a_scene_is_the_same_whenever_and_by_whomever_it_is_read(source: SyntheticScenes) -> None:
    before = source.image(2)
    source.image(2)[:] = 0
    source.objects(2).boxes[:] = 0
    source.objects(2, masks=True).masks[0][:] = 0
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(source.image(2), before)
    assert again.objects(2).boxes.tolist() == source.objects(2).boxes.tolist() != [[0] * 4]
    assert source.objects(2, masks=True).masks[0].any()
    assert again.fingerprint == source.fingerprint
    with pytest.raises(IndexError):
        source.image(12)


def test_no_scene_is_in_two_splits_or_in_pretraining() -> None:
    """Also where size and number of objects are the same as there."""
    sources = [SyntheticSource(3, 8, 64, split) for split in ("train", "val")]
    scenes = [SyntheticScenes(3, 8, 64, (1, 1), split) for split in ("train", "val")]
    pictures = {one.image(i).tobytes() for one in (*sources, *scenes) for i in range(8)}
    assert len(pictures) == 32
    assert scenes[0].fingerprint != scenes[1].fingerprint
