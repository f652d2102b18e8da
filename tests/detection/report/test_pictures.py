"""The page's pictures: what is hit, wrong and missed, outlines of masks, and how much they weigh."""

import base64
import io
import re
from typing import Any

import cv2
import numpy as np
from PIL import Image

from detection.detections import encode
from detection.report.pictures import BUDGET, Detected, Gallery, gallery
from tests.detection.report import simulated


def test_outlines_are_those_of_the_masks() -> None:
    """Filled again, each covers what the mask covers of the picture, holes left open."""
    whole = np.zeros((480, 640), np.uint8)
    whole[100:300, 200:500] = 1
    whole[150:200, 300:400] = 0
    objects = [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [200, 100, 300, 200], "segmentation": encode(whole)}]
    truth = {
        "images": [{"id": 1, "width": 640, "height": 480}],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": objects,
    }
    half = whole.copy()
    half[:, 330:] = 0
    found = [{"image_id": 1, "category_id": 4, "bbox": objects[0]["bbox"], "score": 0.9, "segmentation": encode(half)}]

    def draw(masks: bool) -> Gallery:
        rows = [Detected("row", found, 0)]
        return gallery(truth, rows, lambda i: np.zeros((480, 640, 3), np.uint8), masks=masks)

    assert not draw(False).errors[0].wrong  # the box is right
    (wrong,) = draw(True).errors[0].wrong
    assert wrong.panels[0].caption.startswith("cat 0.90: badly placed, IoU 0.4")
    (box,) = draw(True).samples[0].panels[0].boxes
    again = np.zeros((240, 320), np.uint8)
    lines = [
        np.array([[int(v) for v in point.split(",")] for point in line.split()])
        for line in re.findall("M(.*?)Z", box.path)
    ]
    assert len(lines) == 2
    cv2.fillPoly(again, lines, 1)
    assert np.count_nonzero(again != whole[::2, ::2]) < 0.04 * whole[::2, ::2].sum()


def test_pictures_tell_hits_from_errors() -> None:
    def annotation(i: int, image: int, category: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
        return {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}

    def detection(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
        return {"image_id": image, "category_id": category, "bbox": box, "score": score}

    truth = {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(1, 7)],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            annotation(1, 1, 4, [100, 100, 200, 100]),
            annotation(2, 2, 4, [100, 100, 200, 100]),
            annotation(3, 3, 4, [100, 100, 200, 100]),
            annotation(4, 4, 4, [0, 0, 640, 480], crowd=1),
            annotation(5, 5, 9, [0, 0, 320, 480]),
        ],
    }
    found = [
        detection(1, 4, [100, 100, 200, 100], 0.9),
        detection(1, 4, [100, 100, 200, 95], 0.8),
        detection(2, 9, [100, 100, 200, 90], 0.95),
        detection(3, 4, [250, 100, 200, 100], 0.7),
        detection(4, 4, [50, 50, 60, 60], 0.99),
        detection(6, 9, [600, 440, 40, 40], 0.6),
        detection(5, 9, [0, 0, 320, 480], 0.29),
    ]
    drawn = gallery(truth, [Detected("row", found, 3)], lambda i: np.full((480, 640, 3), i, np.uint8))
    (errors,) = drawn.errors
    assert [p.panels[0].caption for p in errors.wrong] == [
        "dog 0.95: is cat, IoU 0.90",
        "cat 0.80: found twice, IoU 0.95",
        "cat 0.70: badly placed, IoU 0.14",
        "dog 0.60: nothing is there",
    ]
    assert [p.panels[0].caption for p in errors.missed] == [
        "dog, 50 % of the image: nothing found there",
        "cat, 7 % of the image: nearest: dog 0.95, IoU 0.90",
        "cat, 7 % of the image: nearest: cat 0.70, IoU 0.14",
    ]
    assert [p.image_id for p in drawn.samples] == [1, 2, 3, 5]
    assert [p.caption for p in drawn.samples[0].panels] == ["Ground truth: 1 object", "row: 1 of 1 found, 1 wrong"]
    (box,) = drawn.samples[0].panels[0].boxes
    assert box.xywh == (50, 50, 100, 50)  # halved with the picture
    for picture in (*drawn.samples, *errors.wrong, *errors.missed):
        jpeg = Image.open(io.BytesIO(base64.b64decode(picture.jpeg)))
        assert max(picture.width, picture.height) == 320
        assert jpeg.width / jpeg.height == picture.width / picture.height
        assert jpeg.width <= picture.width  # what is smaller is kept, and enlarged by the page
        assert abs(int(np.asarray(jpeg).mean()) - picture.image_id) <= 1


def test_of_a_sample_without_a_sure_detection_the_surest_is_drawn() -> None:
    """Grey, and neither found nor wrong: short trainings give nothing else to look at."""
    truth = {
        "images": [{"id": i, "width": 64, "height": 48} for i in (1, 2)],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 4, "bbox": [8, 8, 20, 20]} for i in (1, 2)],
    }
    faint = [{"image_id": 1, "category_id": 4, "bbox": [8, 8, 20, 20], "score": score} for score in (0.11, 0.29, 0.2)]
    shown = gallery(truth, [Detected("row", faint, 0)], lambda i: np.zeros((48, 64, 3), np.uint8))
    first, second = (sample.panels[1] for sample in shown.samples)
    assert [(box.kind, box.text) for box in first.boxes] == [("other", "cat 0.29")]
    assert first.caption == "row: 0 of 1 found, 0 wrong; its surest is scored below 0.3"
    assert (second.boxes, second.caption) == ((), "row: 0 of 1 found, 0 wrong")
    assert not shown.errors[0].wrong
    crowd = {"id": 3, "image_id": 1, "category_id": 4, "bbox": [30, 0, 34, 48], "iscrowd": 1}
    sure = {
        "image_id": 1,
        "category_id": 4,
        "bbox": [32, 2, 20, 20],
        "score": 0.9,
    }  # on the crowd: neither hit nor wrong
    among = {**truth, "annotations": [*truth["annotations"], crowd]}
    shown = gallery(among, [Detected("row", [*faint, sure], 0)], lambda i: np.zeros((48, 64, 3), np.uint8))
    assert shown.samples[0].panels[1].caption == "row: 0 of 1 found, 0 wrong"


def test_pictures_keep_to_their_budget() -> None:
    truth = simulated.ground_truth(30, ["cat", "dog", "bus"])
    rows = [Detected("a", simulated.detections(truth, 0.3), 0)]
    sizes = []
    for budget in (BUDGET, 600_000):
        drawn = gallery(truth, rows, simulated.pixels, budget=budget)
        shown = [*drawn.samples, *drawn.errors[0].wrong, *drawn.errors[0].missed]
        sizes.append(sum(len(p.jpeg) for p in shown))
    assert sizes[1] <= 600_000 < sizes[0] <= BUDGET
