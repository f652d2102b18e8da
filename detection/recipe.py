"""The recipe of a detector: typed and strict. Imports nothing slow: errors come at once."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from backbone.compute import Compute, Scaling
from backbone.options import Strict
from backbone.training.recipe import Optim, TrainingRecipe
from detection.data.options import DetData, DetectionData, ScenesData, VocData
from detection.options import TORCHVISION_BETA, AnyDetector

FEWEST_IMAGES = 8
"""That batch norm may take statistics over, from scratch and in comparisons: see arXiv:1803.08494, figure 5."""


class Finetune(TrainingRecipe):
    """Put a backbone into a detector and train it. A YAML file gives the fields (--config FILE), the command line
    overrides them."""

    PLACES: ClassVar[tuple[str, ...]] = (
        "backbone",
        "from_detector",
        "proposals",
        "eval_batch",
        *(
            f"data.{field}"
            for field in ("train", "val", "train_annotations", "val_annotations", "devkit", "cache", "workers")
        ),
    )

    LATER: ClassVar[dict[str, Any]] = {
        **TrainingRecipe.LATER,
        "detector.rpn.channels": 0,
        "detector.rpn.beta": TORCHVISION_BETA,
        "detector.rpn.min_size": 0.001,
        "detector.rpn.inside_only": False,
        "detector.roi.beta": TORCHVISION_BETA,
        "detector.roi.init": "uniform",
        "new_heads": False,
        "data.share": 1.0,
        "data.augment.canvas": 0,
        "data.augment.scales": [0.1, 2.0],
        "data.augment.paste": 0.0,
        "detector.context": False,
        "train": "joint",
    }

    backbone: str = ""
    """Backbone artifact: a folder or URL. It is verified, and gives the net, its weights and its input convention."""

    from_detector: str = ""
    """Detector artifact to go on from, in place of a backbone: a folder or URL. Net, input convention and all weights
    that fit are its own; what belongs to classes is taken for those of the same name, and is new for others."""

    class_names: dict[str, str] = Field(default_factory=dict)
    """from_detector: what a class of data.train is called there, where otherwise: --class_names.tvmonitor tv."""

    new_heads: bool = False
    """from_detector: take nothing that belongs to classes."""

    from_scratch: bool = False
    """Take net and input convention of the backbone, but not its weights: what is pretraining worth?"""

    train: Literal["joint", "rpn", "heads"] = "joint"
    """What trains, beside the layers that `detector.freeze_at` leaves. joint: everything. rpn: not the region heads, C5
    of kind c4 among them. heads: not the proposal network. See jobs/alternate.py."""

    proposals: str = ""
    """train heads: detector artifact whose proposals are trained on, in place of this one's own: a folder or URL."""

    detector: AnyDetector
    data: DetectionData = ScenesData()
    optim: Optim = Optim(batch=16, lr=0.02, lr_batch=16)

    eval_batch: int = Field(1, ge=1)
    """Images read at once for evaluation; those of like shape go through the detector together. AP stays the same."""

    @property
    def title(self) -> str:
        """See `TrainingRecipe.title`."""
        return self.detector.title

    @property
    def semantic(self) -> bool:
        """Whether pixels are classified, and not objects found."""
        return self.detector.kind == "semantic"

    @property
    def equal_shares(self) -> bool:
        """See `TrainingRecipe.equal_shares`."""
        return self.detector.norm == "sync"

    def check_micro_batch(self, unit: int) -> None:
        """See `TrainingRecipe.check_micro_batch`."""
        if self.from_scratch:
            self.check_norm_images(unit, "--detector.norm group, in a comparison --scratch_with.detector.norm group")
        shortest = min(self.data.shorter_side)
        if unit == 1 and self.detector.norm == "trainable" and shortest <= 32:
            raise ValueError(
                f"detector.norm trainable: images of data.shorter_side {shortest} may leave the backbone a last map of "
                "1x1 pixels, where optim.micro_batch 1 gives batch norm one value a channel; set optim.micro_batch to "
                "2 or more, data.shorter_side above 32, or detector.norm frozen"
            )

    def check_norm_images(self, unit: int, fix: str) -> None:
        """ValueError, which ends with `fix`, where batch norm would train on micro-batches too small for it."""
        images = {"trainable": unit, "sync": unit * self.scaling.processes}
        if images.get(self.detector.norm, FEWEST_IMAGES) < FEWEST_IMAGES:
            raise ValueError(
                f"detector.norm {self.detector.norm}: batch norm would take its statistics over "
                f"{images[self.detector.norm]} image(s) at a time, and wants {FEWEST_IMAGES}; {fix}"
            )

    def norm_doubts(self, unit: int) -> list[str]:
        """What `check_norm_images` refuses from scratch and in comparisons, and else only a line tells."""
        try:
            self.check_norm_images(unit, "--detector.norm frozen")
        except ValueError as error:
            return [str(error)]
        return []

    @model_validator(mode="after")
    def _readable(self) -> "Finetune":
        if not isinstance(self.data, ScenesData) and not self.data.train:
            raise ValueError(f"data.train is empty: source {self.data.source} needs the location of its images")
        if self.compute.compile != "none":
            raise ValueError("compute.compile: shapes and branches of a detector change with every image; leave it off")
        if self.schedule.hold_lr:
            raise ValueError("schedule.hold_lr waits for a classification error; use schedule.warmup")
        if bool(self.backbone) == bool(self.from_detector):
            given = "both are given" if self.backbone else "none is given"
            raise ValueError(
                f"backbone, from_detector: give one of them, {given}: --backbone FOLDER is an artifact of "
                "jobs/pretrain.py or jobs/import.py, --from_detector FOLDER one of jobs/finetune.py"
            )
        if self.from_detector and self.from_scratch:
            raise ValueError("from_scratch, from_detector: give one of them; a backbone says which net is to be new")
        if (self.class_names or self.new_heads) and not self.from_detector:
            raise ValueError("class_names, new_heads are read with from_detector only")
        if self.class_names and self.new_heads:
            raise ValueError("class_names, new_heads: give one of them")
        if self.from_scratch and (self.detector.norm == "frozen" or self.detector.freeze_at):
            raise ValueError(
                "from_scratch: what is random must train; set detector.norm group (or trainable, sync) and freeze_at 0"
            )
        if self.semantic and isinstance(self.data, DetData):
            raise ValueError("detector.kind semantic: ImageNet DET has boxes alone; use source coco, voc or synthetic")
        if self.semantic and isinstance(self.data, VocData) and not self.data.keep_empty:
            raise ValueError(
                "data.keep_empty false: is not read with detector.kind semantic and source voc, where images are those "
                "of ImageSets/Segmentation; leave it out"
            )
        if self.semantic and self.data.augment.paste:
            raise ValueError(
                "data.augment.paste: objects are pasted for boxes and masks, not for detector.kind semantic"
            )
        if self.train != "joint" and self.detector.kind in ("retinanet", "semantic"):
            raise ValueError(
                f"train {self.train}: kind {self.detector.kind} has neither proposals nor region heads; use joint"
            )
        if self.proposals and self.train != "heads":
            raise ValueError("proposals are read with train heads only")
        if self.train == "heads" and self.backbone and not self.proposals:
            raise ValueError(
                "proposals: train heads on a backbone would read those of a proposal network that nobody trains; give "
                "--proposals FOLDER, or --from_detector FOLDER in place of --backbone"
            )
        best = "run.export best" if self.run.export == "best" else ""
        by_ap = best or ("schedule.kind plateau" if self.schedule.kind == "plateau" else "")
        if by_ap and (self.train == "rpn" or self.proposals):
            raise ValueError(f"{by_ap}: goes by AP, of which train {self.train} leaves a part untrained; take another")
        wanting = "detector.masks" if self.detector.masks else "data.augment.paste" if self.data.augment.paste else ""
        if wanting and isinstance(self.data, VocData | DetData):
            whose = "Pascal VOC's" if isinstance(self.data, VocData) else "ImageNet DET's"
            raise ValueError(f"{wanting}: {whose} boxes come without masks; use source coco or synthetic")
        return self


class DetectorEvaluation(Strict):
    """Judge a detector. The command line gives the fields, or a YAML file (--config FILE).

    Data that are not given are those it was trained with.
    """

    detector: tuple[str, ...] = Field(min_length=1)
    """Detector artifact: a folder or URL. It is verified. Detections of several are made one by weighted box fusion."""

    data: DetectionData = ScenesData()
    """Only `val` is read. Sizes that are not given are those the detector was trained with."""

    batch: int = Field(1, ge=1)
    """Images read at once by each worker; those of like shape go through the detector together, or with one of the
    steps below one by one. AP stays the same."""

    refine: bool = False
    """Regress and score the regressed boxes again and pool both, NMS at IoU 0.3 (arXiv:1512.03385, appendix B)."""

    vote: bool = False
    """Box voting: each detection becomes the mean, weighted by scores, of the boxes of its class at IoU 0.5 or more
    that NMS chose from."""

    flip: bool = False
    """Look at the mirror image of each image too, and pool before NMS."""

    scales: tuple[int, ...] = ()
    """Shorter sides, pixels, in place of data.shorter_side: look at each image at each of them, and pool before NMS.
    data.longer_side goes along in proportion."""

    maxout: bool = False
    """With scales, kind c4, ascending: the paper's way. Proposals are made at data.shorter_side alone, and each region
    takes the maximum of its features at two adjacent scales."""

    fast: bool = True
    """Score by faster-coco-eval, whose numbers are the same; false: by pycocotools itself."""

    compute: Compute = Compute(precision="fp32")
    scaling: Scaling = Scaling(num_workers=0)

    output: str = ""
    """Folder or URL of the results. Empty: `results-<fingerprint of the data>` beside the artifact, followed by the
    shorter side where it is another than in training and the steps that are taken."""

    @field_validator("detector", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @property
    def steps(self) -> list[str]:
        """What is done beside one look at each image, in words of a folder's name."""
        return [name for name in ("refine", "vote", "flip", "maxout") if getattr(self, name)] + [
            str(side) for side in self.scales
        ]

    @model_validator(mode="after")
    def _possible(self) -> "DetectorEvaluation":
        if self.compute.compile != "none":
            raise ValueError("compute.compile: shapes and branches of a detector change with every image; leave it off")
        if self.compute.precision == "fp16" and not self.scaling.use_gpu:
            raise ValueError("compute.precision fp16 needs scaling.use_gpu; use bf16 or fp32 on CPU")
        if len({*self.detector}) < len(self.detector):
            raise ValueError(f"detector {list(self.detector)}: names one twice")
        if self.scales and (min(self.scales) < 16 or len({*self.scales}) < max(2, len(self.scales))):
            raise ValueError(
                f"scales {list(self.scales)}: give two or more different shorter sides of 16 pixels or more, such as "
                "--scales 600 800 1000; one alone is --data.shorter_side"
            )
        if self.maxout and (not self.scales or list(self.scales) != sorted(self.scales)):
            raise ValueError("maxout wants scales in ascending order, such as --scales 200 400 600 800 1000")
        return self
