"""Every option of a detector. Imports neither torch nor anything slow.

The same model is the `detector:` section of a recipe, what `detection.nets.build` reads, and what a detector artifact
records. Defaults are torchvision's; the paper's values are in the paper's recipes.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from backbone.kinds import OneOf
from backbone.options import Strict

TORCHVISION_BETA = 1 / 9


class Rpn(Strict):
    """The region proposal network (arXiv:1506.01497). Boxes are compared in pixels of the net's input."""

    batch: int = Field(256, ge=1)
    """Anchors an image whose loss is taken."""

    fg_fraction: float = Field(0.5, gt=0, le=1)
    """At most this part of them positive."""

    fg_iou: float = Field(0.7, gt=0, le=1)
    """An anchor is positive from this IoU with an object on."""

    bg_iou: float = Field(0.3, ge=0, lt=1)
    """Below it with all of them it is negative; between the two it has no loss."""

    pre_nms_train: int = Field(2000, ge=1)
    """Best anchors that go into NMS, on each level."""

    pre_nms_test: int = Field(1000, ge=1)
    """Likewise, when judged."""

    post_nms_train: int = Field(2000, ge=1)
    """Proposals that come out of it, over all levels."""

    post_nms_test: int = Field(1000, ge=1)
    """Likewise, when judged."""

    nms: float = Field(0.7, gt=0, le=1)
    """Of two proposals with a larger IoU the lower one is dropped."""

    channels: int = Field(0, ge=0)
    """Of the 3x3 convolution before the predictors. 0: as many as the maps have, torchvision's."""

    beta: float = Field(TORCHVISION_BETA, ge=0)
    """Where the smooth L1 loss of boxes turns from square to line. 1/9: py-faster-rcnn's (sigma 3), torchvision's."""

    min_size: float = Field(0.001, ge=0)
    """Proposals with a shorter side below are dropped, pixels."""

    inside_only: bool = False
    """Leave anchors that cross the image's border out of training (arXiv:1506.01497, section 3.3)."""


class Roi(Strict):
    """What is done for each region (arXiv:1504.08083)."""

    size: int = Field(0, ge=0)
    """Side of the pooled region. 0: 7, and 14 where C5 then halves it to 7, which is c4 on residual nets."""

    pooling: Literal["align", "max"] = "align"
    """align: RoIAlign (arXiv:1703.06870), two samples a bin and axis. max: the RoI pooling of 2015, for c4 alone."""

    canonical: float = Field(224.0, gt=0)
    """fpn: side of the box, pixels, that is pooled from the level of stride 16 (arXiv:1612.03144, eq. 1)."""

    batch: int = Field(512, ge=1)
    """Proposals an image whose loss is taken."""

    fg_fraction: float = Field(0.25, gt=0, le=1)
    """At most this part of them on objects."""

    fg_iou: float = Field(0.5, gt=0, le=1)
    """A proposal is on an object from this IoU on."""

    bg_iou: float = Field(0.5, ge=0, le=1)
    """Below it with all of them it is background."""

    score: float = Field(0.05, ge=0, lt=1)
    """Detections below are dropped."""

    beta: float = Field(TORCHVISION_BETA, ge=0)
    """Where the smooth L1 loss of boxes turns from square to line. 1: Fast R-CNN's (eq. 3). 1/9: torchvision's."""

    init: Literal["uniform", "normal"] = "uniform"
    """First weights of the predictors. uniform: torch's of any linear layer. normal: Fast R-CNN's, deviation 0.01 of
    classes and 0.001 of boxes, biases 0."""

    nms: float = Field(0.5, gt=0, le=1)
    """Of two detections of a class with a larger IoU the lower one is dropped."""

    detections: int = Field(100, ge=1)
    """Most detections an image."""


class _OnBackbone(Strict):
    """What every detector says of the net it stands on."""

    kind: str

    norm: Literal["frozen", "trainable", "sync", "group"]
    """What becomes of the backbone's norms, and nothing is assumed. frozen: fixed statistics and affine, as in the
    paper. trainable: batch norm goes on as in pretraining. sync: over all workers. group: the backbone has
    that, or layer norm."""

    freeze_at: int = Field(ge=0, le=5)
    """Parts of the backbone that do not train, from the image up: 0 none, 1 the stem, 2 also C2, ... 5 also C5."""

    channels: int = Field(256, ge=1)
    """Of the pyramid, and of the mask branch or RetinaNet's two heads. Not of c4."""


class _Anchored(_OnBackbone):
    """What detectors of boxes say besides."""

    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    """Sides of square anchors, pixels. fpn: one a level, P2 to P6. retinanet: P3 to P7. c4: all of them on C4."""

    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if not self.anchor_sizes or not self.anchor_ratios or min(*self.anchor_sizes, *self.anchor_ratios, 1) <= 0:
            raise ValueError("anchor_sizes and anchor_ratios must be positive numbers, at least one of each")
        return self


class DetectorOptions(_Anchored):
    """A Faster R-CNN, or with masks a Mask R-CNN."""

    kind: Literal["fpn", "c4"] = "fpn"
    """fpn: Faster R-CNN on a feature pyramid. c4: RPN and regions on C4, C5 (VGG: fc6 and fc7) for each region, the
    paper's."""

    masks: bool = False
    """Mask R-CNN (arXiv:1703.06870)."""

    context: bool = False
    """Score and regress each region by a feature of the whole image beside its own (arXiv:1512.03385, appendix B)."""

    hidden: int = Field(1024, ge=1)
    """fpn: width of the two layers of the box head."""

    rpn: Rpn = Rpn()
    roi: Roi = Roi()

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{'mask' if self.masks else 'faster'}-rcnn-{self.kind}"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind == "c4":
            for field in ("channels", "hidden"):
                if getattr(self, field) != DetectorOptions.model_fields[field].default:
                    raise ValueError(f"{field} is read by kind fpn, not by c4")
            if self.roi.canonical != 224:
                raise ValueError("roi.canonical is read by kind fpn, not by c4")
        elif self.roi.pooling == "max":
            raise ValueError("roi.pooling max is for kind c4; a pyramid is pooled with align")
        if self.rpn.bg_iou > self.rpn.fg_iou or self.roi.bg_iou > self.roi.fg_iou:
            raise ValueError("bg_iou must not be above fg_iou")
        return self


class RetinaOptions(_Anchored):
    """A RetinaNet (arXiv:1708.02002). Defaults are those of torchvision's retinanet_resnet50_fpn; with p6 C5, head_norm
    group and box_loss giou it is retinanet_resnet50_fpn_v2."""

    kind: Literal["retinanet"] = "retinanet"
    """retinanet: classes and boxes of every anchor on P3 to P7, without proposals."""

    octaves: int = Field(3, ge=1)
    """Anchors of a level at each ratio: of side s, s 2^(1/n), ..., less fractions of a pixel, as torchvision's."""

    p6: Literal["P5", "C5"] = "P5"
    """What the convolution that makes P6 reads. C5: the paper's. P5: torchvision's first model and FCOS."""

    head_norm: Literal["none", "group"] = "none"
    """In the four layers of each head. none: the paper's. group: of 32 groups."""

    box_loss: Literal["l1", "giou"] = "l1"
    """Of the boxes of anchors with an object."""

    fg_iou: float = Field(0.5, gt=0, le=1)
    """An anchor has the object it overlaps so much, and each object has its best anchors."""

    bg_iou: float = Field(0.4, ge=0, lt=1)
    """An anchor that overlaps no object more has none; between the two its classes take no part."""

    score: float = Field(0.05, ge=0, lt=1)
    """Detections below are dropped."""

    pre_nms: int = Field(1000, ge=1)
    """Best detections of each level that go into NMS."""

    nms: float = Field(0.5, gt=0, le=1)
    """Of two detections of a class with a larger IoU the lower one is dropped."""

    detections: int = Field(300, ge=1)
    """Most detections an image."""

    masks: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What people call it."""
        return "retinanet-fpn"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(self.anchor_sizes) != 5:
            raise ValueError(
                f"anchor_sizes has {len(self.anchor_sizes)} sizes; kind retinanet needs 5, one for each of P3 to P7"
            )
        if self.bg_iou > self.fg_iou:
            raise ValueError("bg_iou must not be above fg_iou")
        if self.head_norm == "group" and (self.channels % 32 or self.channels == 32):
            raise ValueError(
                f"head_norm group has 32 groups of two or more: channels {self.channels} must be 64, 96, ..."
            )
        return self


class SemanticOptions(_OnBackbone):
    """Semantic segmentation: Panoptic FPN's branch (arXiv:1901.02446, section 3), alone on the pyramid."""

    kind: Literal["semantic"] = "semantic"
    """semantic: the class of every pixel, from all levels of the pyramid."""

    head_channels: int = Field(128, ge=64)
    """Of the branch, whose group norms have 32 groups."""

    masks: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What people call it."""
        return "semantic-fpn"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.head_channels % 32:
            raise ValueError(f"head_channels {self.head_channels}: its norms have 32 groups; give 64, 96, 128, ...")
        return self


AnyDetector = Annotated[DetectorOptions | RetinaOptions | SemanticOptions, OneOf()]

_ANY: TypeAdapter[DetectorOptions | RetinaOptions | SemanticOptions] = TypeAdapter(AnyDetector)


def detector_options(tree: object) -> DetectorOptions | RetinaOptions | SemanticOptions:
    """The options that an artifact records; pydantic's ValidationError where they are none."""
    return _ANY.validate_python(tree)
