"""The `data:` section of a detection recipe. Imports nothing slow."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from backbone.kinds import OneOf
from backbone.options import Seed, Strict


class DetectionAugment(Strict):
    """How training images are varied. Every draw is keyed by (seed, epoch, sample), see `detection.data.augment`."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""

    crop: float = Field(0.0, ge=0, le=1)
    """Probability of a random crop that keeps every box it touches at least half (0 is off)."""

    colour: float = Field(0.0, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter (0 is off; 0.4 is SSD's)."""

    canvas: int = Field(0, ge=0)
    """Side of a square, pixels. Large-scale jitter (arXiv:2012.07177) in place of data.shorter_side, which is then of
    evaluation alone: an image is scaled to fit the square times a factor out of `scales`; of one that is larger a part
    is seen, one that is smaller is padded. 1024 is usual; 0 is off."""

    scales: tuple[float, float] = (0.1, 2.0)
    """canvas: range of the factor."""

    paste: float = Field(0.0, ge=0, le=1)
    """Probability that half of the objects of another training image, varied likewise, are laid over an image
    (arXiv:2012.07177, copy-paste). Needs masks. 0 is off."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.canvas and self.canvas < 32:
            raise ValueError(f"canvas {self.canvas}: give 32 pixels or more, or 0 for data.shorter_side")
        if self.canvas and self.crop:
            raise ValueError("crop, canvas: each shows a part of an image; give one of them")
        if not self.canvas and self.scales != DetectionAugment.model_fields["scales"].default:
            raise ValueError("scales is read with canvas only; give --data.augment.canvas 1024, or leave it out")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales {list(self.scales)}: give [smaller, larger] above 0")
        return self


class _Data(Strict):
    """Annotated images, and the size at which the detector sees them."""

    source: str

    shorter_side: tuple[int, ...] = (800,)
    """Training: the shorter side is resized to one of these, drawn for each image; evaluation takes the last."""

    longer_side: int = Field(1333, ge=16)
    """Shrunk further where the longer side would be above this."""

    keep_empty: bool = True
    """Train on images without objects too (as backgrounds)."""

    share: float = Field(1.0, gt=0, le=1)
    """Part of the training images to train on: what is a backbone worth with few labels? Chosen by a hash of their ids,
    so that shares are nested, and the same for every backbone and seed. 1: all."""

    augment: DetectionAugment = DetectionAugment()

    workers: int = Field(4, ge=0)
    """Loader processes for each training worker. 0: load in the training process."""

    on_bad: Literal["stop", "skip"] = "stop"
    """An unreadable image: stop and name it, or put the next image in its place, counted and named."""

    max_bad: int = Field(10, ge=0)
    """With on_bad skip: stop after so many different bad images all the same."""

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if not self.shorter_side or min(self.shorter_side) < 16:
            raise ValueError(f"shorter_side {list(self.shorter_side)}: give sizes in pixels, 16 or more")
        if self.longer_side < max(self.shorter_side):
            raise ValueError(f"longer_side {self.longer_side} is below shorter_side {max(self.shorter_side)}")
        if self.on_bad == "stop" and self.max_bad != _Data.model_fields["max_bad"].default:
            raise ValueError("max_bad is read with on_bad skip only")
        return self


class ScenesData(_Data):
    """Scenes that are rendered when they are asked for."""

    source: Literal["synthetic"] = "synthetic"
    """synthetic: rendered scenes, no download."""

    seed: Seed = 0
    """Which scenes. Not the run's seed: runs that differ in that one are judged on the same images."""

    train_images: int = Field(2000, ge=1)
    """How many training images exist."""

    val_images: int = Field(500, ge=1)
    """How many validation images exist."""

    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects in a scene."""

    render: int = Field(128, ge=32)
    """Side of a scene, pixels."""

    @model_validator(mode="after")
    def _objects(self) -> Self:
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects {list(self.objects)}: give [fewest, most], 1 or more")
        return self


class _StoredData(_Data):
    """Images in files."""

    cache: str = ""
    """Folder for annotations as flat arrays. Empty: ~/.cache/raybone."""


class CocoData(_StoredData):
    """COCO's layout."""

    source: Literal["coco"] = "coco"
    """coco: images and an instances JSON."""

    train: str = ""
    """Folder or URL of images."""

    val: str = Field(min_length=1)
    """Likewise."""

    train_annotations: str = ""
    """The JSON. Empty: annotations/instances_<name of the folder>.json beside the folder of images."""

    val_annotations: str = ""
    """Likewise."""


class VocData(_StoredData):
    """Pascal VOC's layout."""

    source: Literal["voc"] = "voc"
    """voc: Annotations, ImageSets/Main and JPEGImages."""

    train: str = ""
    """`folder:split`, joined by commas: VOC2007:trainval,VOC2012:trainval."""

    val: str = Field(min_length=1)
    """Likewise."""


class DetData(_StoredData):
    """ImageNet DET in ILSVRC's layout."""

    source: Literal["det"] = "det"
    """det: Annotations/DET, ImageSets/DET and Data/DET."""

    train: str = ""
    """`folder:list`, joined by commas: /data/ILSVRC:train,/data/ILSVRC:val1. `train` is all of train_1 to train_200."""

    val: str = Field(min_length=1)
    """Likewise: /data/ILSVRC:val2."""

    partial: bool = False
    """Train on images too in which not all objects may be annotated; the others are trained as background."""

    negatives: bool = False
    """Train on images too that are listed because they lack a class; objects of other classes may be in them."""

    devkit: str = ""
    """The devkit's `data` folder, for names and order of the 200 classes and the blacklist of validation images. Empty:
    classes are WordNet ids in sorted order, and all are judged."""


DetectionData = Annotated[ScenesData | CocoData | VocData | DetData, OneOf()]
