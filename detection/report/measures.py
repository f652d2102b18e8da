"""What the report measures: its numbers, where metrics.json has them, and from which matches they are drawn again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from detection.pixels import mean_iou
from detection.report.bootstrap import coco, voc_area, voc_eleven
from detection.report.errors import KINDS, costs
from detection.report.stored import Kind

Main = Literal["AP", "mAP", "mAP07", "mIoU"]
"""The number whose gain the report is about: COCO's AP; for VOC data VOC's mAP, the area since 2010, 11 points 2007; of
kind semantic mIoU."""


class Metric(NamedTuple):
    """A number of an evaluation: `metrics[section][key]`."""

    section: Literal["bbox", "segm", "voc", "semantic"]
    key: str
    title: str
    said: str
    """In a caption, after the title."""

    @property
    def per_class(self) -> str:
        """Its key for a single class."""
        return self.key.removeprefix("m")


METRICS = {
    "AP": Metric("bbox", "AP", "AP", "over IoU 0.50 to 0.95 (COCO)"),
    "AP50": Metric("bbox", "AP50", "AP50", ""),
    "AP75": Metric("bbox", "AP75", "AP75", ""),
    "AP_masks": Metric("segm", "AP", "mask AP", "over IoU 0.50 to 0.95 (COCO)"),
    "AP50_masks": Metric("segm", "AP50", "mask AP50", ""),
    "AP75_masks": Metric("segm", "AP75", "mask AP75", ""),
    "mAP": Metric("voc", "mAP", "VOC mAP", "at IoU 0.5, area under the curve (VOC 2010 to 2012)"),
    "mAP07": Metric("voc", "mAP07", "VOC mAP", "at IoU 0.5, 11 points (VOC 2007)"),
    "mIoU": Metric("semantic", "mIoU", "mIoU", "over classes and background"),
    "accuracy": Metric("semantic", "accuracy", "pixel accuracy", ""),
}


@dataclass(frozen=True)
class Measure:
    """Numbers that are drawn again together."""

    kind: Kind
    names: tuple[str, ...]
    of: Callable[[Any, np.ndarray], np.ndarray]
    """From what is stored of `kind` and image weights [N, B] to float64 [names, B]."""


BOXES = Measure("bbox", ("AP", "AP50", "AP75"), coco)
MASKS = Measure("segm", ("AP_masks", "AP50_masks", "AP75_masks"), coco)
PIXELS = Measure("semantic", ("mIoU", "accuracy"), mean_iou)
VOC = {"mAP": Measure("voc", ("mAP",), voc_area), "mAP07": Measure("voc", ("mAP07",), voc_eleven)}


@dataclass(frozen=True)
class Part:
    """A part of the report that stands for itself."""

    name: Literal["boxes", "masks", "pixels"]
    main: str
    """The metric its gains and headline are of; `columns` begin with it."""

    columns: tuple[str, ...]
    measures: tuple[Measure, ...]
    errors: Measure | None
    """What each kind of error costs, in the order of `detection.report.errors.KINDS`; None of pixels."""

    of_class: str = "AP"
    """What a single class is judged by."""

    counted: str = "objects"
    """What a class has a number of."""


def parts(main: Main, masks: bool = False) -> tuple[Part, ...]:
    """What a report is made of: boxes, and masks where there are some; or pixels."""
    if main == "mIoU":
        return (Part("pixels", main, PIXELS.names, (PIXELS,), None, "IoU", "pixels"),)
    errors = Measure("bbox", KINDS, costs)
    boxes = Part("boxes", "AP", BOXES.names, (BOXES,), errors)
    if main != "AP":
        boxes = Part("boxes", main, (main, *BOXES.names), (VOC[main], BOXES), errors)
    if not masks:
        return (boxes,)
    errors = Measure("segm", tuple(f"{kind}_masks" for kind in KINDS), costs)
    return boxes, Part("masks", "AP_masks", MASKS.names, (MASKS,), errors)
