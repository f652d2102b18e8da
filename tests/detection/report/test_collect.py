"""What a report takes from recipes."""

import pytest

from detection.data.options import CocoData, ScenesData, VocData
from detection.report.collect import main_measure


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
