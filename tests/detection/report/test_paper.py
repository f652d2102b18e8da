"""The paper's numbers against the paper's own statements about them."""

import pytest

from detection.report import paper


def test_gains_are_those_the_paper_states() -> None:
    gains = {(g.table, g.data.split(",")[0], g.metric): g for g in paper.GAINS}
    assert len(gains) == len(paper.GAINS) == 4
    coco, coco50 = gains[8, "COCO val", "AP"], gains[8, "COCO val", "AP50"]
    # abstract and section 4.3: "a 6.0% increase in COCO's standard metric, which is a 28% relative improvement"
    assert coco.absolute == 6.0
    assert round(coco.relative) == 28
    assert coco50.absolute == 6.9  # appendix A
    assert (coco.vgg16, coco.resnet101, coco50.vgg16, coco50.resnet101) == (21.2, 27.2, 41.5, 48.4)
    # table 7: ">3%" over VGG-16
    assert gains[7, "VOC 2007 test", "mAP07"].absolute == 3.2
    assert gains[7, "VOC 2012 test", "mAP"].absolute == 3.4
    assert gains[7, "VOC 2007 test", "mAP07"].relative == pytest.approx(100 * (76.4 / 73.2 - 1), abs=1e-9)
