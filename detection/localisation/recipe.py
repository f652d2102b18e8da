"""The recipe of a localiser: typed and strict. Imports nothing slow: errors come at once."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from backbone.data.options import Loading, ModernAugment
from backbone.kinds import OneOf
from backbone.options import Seed, Strict
from backbone.training.recipe import Optim, TrainingRecipe


class LocaliserOptions(Strict):
    """A per-class region proposal network on a classifier's maps: for each anchor a score and a box for each class."""

    kind: Literal["rpn"] = "rpn"
    """rpn: a per-class region proposal network (Table 13's RPN)."""

    norm: Literal["frozen", "trainable", "sync", "group"]
    """What becomes of the classifier's norms, as in detectors (the paper does not say). frozen: fixed statistics and
    affine. trainable: batch norm goes on as in pretraining. sync: over all workers. group: the classifier has that."""

    freeze_at: int = Field(0, ge=0, le=5)
    """Parts of the net that do not train, from the image up, as in detectors."""

    stage: Literal["C3", "C4", "C5"] = "C5"
    """The map that is read. The paper does not say which."""

    channels: int = Field(512, ge=0)
    """Of a 3x3 convolution before the two 1x1 ones, as in Faster R-CNN. 0: none."""

    anchor_sizes: tuple[float, ...] = Field((64, 128, 224), min_length=1)
    """Sides of square anchors, pixels of the net's input. The paper does not say."""

    anchor_ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Height over width."""

    anchors: int = Field(8, ge=2)
    """Anchors an image whose loss is taken, half of them positive at most (appendix C)."""

    fg_iou: float = Field(0.7, gt=0, le=1)
    """An anchor is positive from this IoU with the object on."""

    bg_iou: float = Field(0.3, ge=0, lt=1)
    """Below it it is negative; between the two it has no loss."""

    beta: float = Field(1 / 9, ge=0)
    """Where the smooth L1 loss of boxes turns from square to line."""

    @model_validator(mode="after")
    def _possible(self) -> "LocaliserOptions":
        if min(*self.anchor_sizes, *self.anchor_ratios) <= 0:
            raise ValueError("anchor_sizes and anchor_ratios must be positive numbers")
        if self.bg_iou > self.fg_iou:
            raise ValueError("bg_iou must not be above fg_iou")
        return self


class RegionOptions(Strict):
    """The R-CNN step: a classifier fed with one proposal at a time, warped to its size, which says for the proposal's
    class how sure it is of it and where its box should be."""

    kind: Literal["rcnn"]
    """rcnn: the R-CNN on the proposals of such a network (Table 13's RPN+RCNN)."""

    norm: Literal["frozen", "trainable", "sync", "group"]
    """As of kind rpn."""

    freeze_at: int = Field(0, ge=0, le=5)
    """As of kind rpn."""

    proposals: int = Field(200, ge=1)
    """The highest scored ones of a class that are read of an image, in training and in tests."""

    nms: float = Field(0.7, gt=0, le=1)
    """Before that, of two proposals with a larger IoU the lower scored one is dropped. 1: none is. The paper does not
    say."""

    scales: tuple[int, ...] = Field((256,), min_length=1)
    """Training: shorter sides at which the proposal network sees the whole images, for a net of 224 px. The paper does
    not say."""

    padding: int = Field(16, ge=0, le=64)
    """Pixels of what is around a proposal on each side of the warped image, for a net of 224 px (R-CNN's 16)."""

    positive: float = Field(0.25, gt=0, lt=1)
    """Share of training images of which a positive proposal is drawn, where there is one (R-CNN's 0.25)."""

    fg_iou: float = Field(0.5, gt=0, le=1)
    """A proposal is positive from this IoU with an object on, else negative."""

    beta: float = Field(1.0, ge=0)
    """Where the smooth L1 loss of boxes turns from square to line."""

    @model_validator(mode="after")
    def _large(self) -> "RegionOptions":
        if min(self.scales) < 224:
            raise ValueError(f"scales {list(self.scales)}: below 224 an image is smaller than what the net reads")
        return self


AnyLocaliser = Annotated[LocaliserOptions | RegionOptions, OneOf()]


class _Data(Loading):
    """Images of one main object each. The net sees them as the classifier does, at its size and crop_pct.

    With on_bad skip unreadable images are left out of validation.
    """

    @model_validator(mode="after")
    def _boxes_go_along(self) -> "_Data":
        if isinstance(self.augment, ModernAugment) and (self.augment.blends or self.augment.policy != "none"):
            raise ValueError(
                "augment: mixup, cutmix and policies would move objects out of their boxes; leave them off"
            )
        if isinstance(self.augment, ModernAugment) and self.augment.repeats > 1:
            raise ValueError("augment.repeats is read by jobs/pretrain.py alone; leave it out")
        return self


class OneObjectData(_Data):
    """Scenes of one object that are rendered when they are asked for."""

    source: Literal["synthetic"] = "synthetic"
    """synthetic: rendered scenes, those that classifiers of data.source synthetic learn from. No download."""

    seed: Seed = 0
    """Which scenes: of seed 0, those that a classifier of seed 0 was trained and judged on."""

    train_images: int = Field(4096, ge=1)
    """How many training images exist."""

    val_images: int = Field(500, ge=1)
    """How many validation images exist."""

    @model_validator(mode="after")
    def _no_files(self) -> "OneObjectData":
        if self.decode != "exact":
            raise ValueError(f"decode {self.decode} is for JPEG files; source synthetic has none, use exact")
        return self


class ClsLocData(_Data):
    """ILSVRC's CLS-LOC layout."""

    source: Literal["clsloc"]
    """clsloc: a folder ILSVRC with Data/CLS-LOC, Annotations/CLS-LOC and ImageSets/CLS-LOC."""

    train: str = ""
    """`folder:list`, such as /data/ILSVRC:train_loc. Images without boxes are left out."""

    val: str = Field(min_length=1)
    """Likewise, such as /data/ILSVRC:val."""

    blacklist: str = ""
    """The devkit's file of validation images that are not judged, by their numbers from 1. Empty: none."""

    cache: str = ""
    """Folder for indexes. Empty: ~/.cache/raybone."""


LocData = Annotated[OneObjectData | ClsLocData, OneOf()]


class Localise(TrainingRecipe):
    """Fine-tune a classifier into a localiser and judge it. A YAML file gives the fields (--config FILE), the command
    line overrides them."""

    PLACES: ClassVar[tuple[str, ...]] = (
        "backbone",
        "proposals",
        "eval_batch",
        "pictures",
        *(f"data.{field}" for field in ("train", "val", "blacklist", "cache", "workers", "resident")),
    )

    backbone: str = Field(min_length=1)
    """Backbone artifact: a folder or URL. It is verified. It gives the net to fine-tune and, as it is, the classes."""

    proposals: str = ""
    """kind rcnn: artifact of a localiser of kind rpn, whose proposals are read: a folder or URL. It is verified."""

    by_position: bool = False
    """Take label k of the data for class k of the net, whatever their names: the usual order of ImageNet's 1000."""

    LATER: ClassVar[dict[str, Any]] = {
        **TrainingRecipe.LATER,
        "localiser.kind": "rpn",
        "data.augment.magnitude": 9.0,
        "data.augment.magnitude_std": 0.0,
        "data.augment.repeats": 1,
    }

    localiser: AnyLocaliser
    data: LocData = OneObjectData()
    optim: Optim = Optim(batch=256, lr=0.01, lr_batch=256)

    scales: tuple[int, ...] = Field((224, 256, 384, 480, 640), min_length=1)
    """Dense testing: shorter sides for a net of 224 px. For a net of another size they are in proportion."""

    eval_batch: int = Field(32, ge=1)
    """Images read at once for evaluation."""

    pictures: int = Field(12, ge=1)
    """Images in the picture of boxes."""

    @property
    def title(self) -> str:
        """See `TrainingRecipe.title`."""
        return "localiser" if self.localiser.kind == "rpn" else "rcnn"

    @property
    def equal_shares(self) -> bool:
        """See `TrainingRecipe.equal_shares`."""
        return self.localiser.norm == "sync"

    @model_validator(mode="after")
    def _readable(self) -> "Localise":
        if isinstance(self.data, ClsLocData) and not self.data.train:
            raise ValueError("data.train is empty: source clsloc needs folder:list, such as /data/ILSVRC:train_loc")
        if self.data.decode == "nvjpeg" and not self.scaling.use_gpu:
            raise ValueError("data.decode nvjpeg decodes on GPUs: set scaling.use_gpu, or data.decode exact or scaled")
        if self.compute.compile != "none":
            raise ValueError("compute.compile: the layers that are read change with each image's class; leave it off")
        if self.schedule.hold_lr:
            raise ValueError("schedule.hold_lr waits for a classification error; use schedule.warmup")
        if min(self.scales) < 224:
            raise ValueError(f"scales {list(self.scales)}: below 224 an image is smaller than what the net reads")
        return self

    @model_validator(mode="after")
    def _proposed(self) -> "Localise":
        if self.localiser.kind == "rpn":
            if self.proposals:
                raise ValueError("proposals are read by localiser.kind rcnn; leave them out")
            return self
        if not self.proposals:
            raise ValueError(
                "proposals: localiser.kind rcnn reads those of a localiser; train one by a recipe of kind rpn, then "
                "give its artifact: --proposals runs/localiser/artifact"
            )
        if self.data.augment.kind != "none":
            raise ValueError(
                f"data.augment.kind {self.data.augment.kind}: localiser.kind rcnn sees proposals, half of them "
                "mirrored, and no crops; give none"
            )
        if self.data.resident:
            raise ValueError("data.resident keeps what is cropped; localiser.kind rcnn warps proposals: leave it off")
        return self
