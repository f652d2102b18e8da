"""What a report takes from recipes."""

import numpy as np
import pytest

from backbone.errors import BadImage
from detection.data.options import CocoData, ScenesData, VocData
from detection.report.collect import main_measure, pictures_of


@pytest.mark.parametrize(
    ("val", "main"),
    [
        ("VOC2007:test", "mAP07"),
        ("/data/VOCdevkit/VOC2007:test", "mAP07"),
        ("s3://bucket/VOC2007/:val, /other/VOC2007:test", "mAP07"),
        ("VOC2012:val", "mAP"),
        ("VOC2007:test,VOC2012:val", "mAP"),
        ("/data/VOC2007/street:val", "mAP"),
    ],
)
def test_voc_data_are_judged_in_the_measure_of_their_year(val: str, main: str) -> None:
    assert main_measure(VocData(val=val)) == main


def test_other_data_are_judged_by_cocos() -> None:
    assert main_measure(ScenesData()) == main_measure(CocoData(val="VOC2007")) == "AP"


def test_an_image_that_cannot_be_read_is_shown_as_it_was_judged() -> None:
    class Gone:
        image_ids, sizes = np.array([7]), np.array([[3, 5]], np.int32)

        def image(self, i: int) -> np.ndarray:
            raise BadImage("7.jpg: no such file")

    shown = pictures_of(Gone())(7)  # ty: ignore[invalid-argument-type]
    assert (shown.shape, shown.any()) == ((3, 5, 3), False)
