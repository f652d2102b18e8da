"""The paper's detection results, beside which ours stand in columns of their own (arXiv:1512.03385, section 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperGain:
    """One published change of backbone under one detector: Faster R-CNN, VGG-16 -> ResNet-101. Percent."""

    table: int
    data: str
    metric: str
    vgg16: float
    resnet101: float

    @property
    def absolute(self) -> float:
        """Percentage points; exact to the printed digit."""
        return round(self.resnet101 - self.vgg16, 1)

    @property
    def relative(self) -> float:
        """Percent of VGG-16's."""
        return 100 * self.absolute / self.vgg16


GAINS = (
    PaperGain(8, "COCO val, trained on COCO train", "AP", 21.2, 27.2),
    PaperGain(8, "COCO val, trained on COCO train", "AP50", 41.5, 48.4),
    PaperGain(7, "VOC 2007 test, trained on 07+12", "mAP07", 73.2, 76.4),
    PaperGain(7, "VOC 2012 test, trained on 07++12", "mAP", 70.4, 73.8),
)
"""Tables 7 and 8, the baseline Faster R-CNN. Tables 9 (COCO), 10 (VOC 2007) and 11 (VOC 2012) repeat these as their
first rows, before box refinement, context and multi-scale testing. Metrics as `detection.report.measures.METRICS` calls
them: AP is the paper's mAP@[.5, .95] and AP50 its mAP@.5 of COCO, 101 points of recall; of VOC 2007 the mean of 11
points, of VOC 2012 the area. A report shows those of its own measure alone."""


def of(metrics: Sequence[str]) -> tuple[PaperGain, ...]:
    """Those measured by one of these."""
    return tuple(gain for gain in GAINS if gain.metric in metrics)


COMPARABLE = (
    "The question is the same: one detector, one recipe, another backbone. The data, their amount, the nets and the "
    "training differ, so the sizes of the gains may be set side by side, the APs not. The paper gives no intervals."
)
