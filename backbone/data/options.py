"""The `data:` section of a recipe. Imports nothing slow."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from backbone.kinds import OneOf
from backbone.options import Strict


class _Augment(Strict):
    """How training images are varied. Every draw is keyed by (seed, epoch, sample), see `backbone.data.augment`."""

    kind: str


class ModernAugment(_Augment):
    """Inception's crop (arXiv:1409.4842), and what came after."""

    kind: Literal["modern"] = "modern"
    """modern: random resized crop, flip."""

    area: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image area."""

    policy: Literal["none", "trivial", "rand", "increasing"] = "none"
    """TrivialAugment (arXiv:2103.10158) or RandAugment (arXiv:1909.13719, two operations), bilinear. rand:
    torchvision's. increasing: timm's, of 15 operations that all do more with their magnitude, each left out half of the
    time."""

    magnitude: float = Field(9, ge=0, le=30)
    """How much the operations of a policy do. rand: a whole number of 30, as torchvision counts. increasing: of 10, as
    timm does."""

    magnitude_std: float = Field(0.0, ge=0)
    """increasing: standard deviation of the magnitude, which is drawn anew for each operation (timm's mstd)."""

    jitter: float = Field(0.0, ge=0, le=1)
    """Brightness, contrast and saturation are changed by factors from 1 - jitter to 1 + jitter, in any order, as by
    torchvision's ColorJitter. 0 is off."""

    erasing: float = Field(0.0, ge=0, le=1)
    """Probability of random erasing (arXiv:1708.04896): a rectangle of 2 to 33 % of the area in the mean colour."""

    mixup: float = Field(0.0, ge=0)
    """Alpha of the Beta distribution mixup draws from (arXiv:1710.09412). 0 is off."""

    cutmix: float = Field(0.0, ge=0)
    """The same for CutMix (arXiv:1905.04899); with both on, a fair coin decides for each pair."""

    repeats: int = Field(1, ge=1)
    """Repeated augmentation (arXiv:1902.05509): so many views of an image in a batch, each varied in its own way. An
    epoch is as many views as ever, of fewer images. 1 is off."""

    @property
    def blends(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area {list(self.area)}: give [smaller, larger] between 0 and 1")
        if self.magnitude != 9 and self.policy not in ("rand", "increasing"):
            raise ValueError(f"magnitude is read by policy rand and increasing, not by {self.policy}; leave it out")
        if self.magnitude_std and self.policy != "increasing":
            raise ValueError(f"magnitude_std is read by policy increasing, not by {self.policy}; leave it out")
        if self.policy == "rand" and self.magnitude != int(self.magnitude):
            raise ValueError(f"magnitude {self.magnitude:g}: policy rand takes a whole number of 30")
        if self.policy == "increasing" and self.magnitude > 10:
            raise ValueError(f"magnitude {self.magnitude:g}: policy increasing takes 0 to 10")
        return self


class PaperAugment(_Augment):
    """Scale augmentation."""

    kind: Literal["paper"] = "paper"
    """paper: shorter side drawn from a range, random crop, flip (section 3.4)."""

    shorter_side: tuple[int, int] = (256, 480)
    """Range of the shorter side before the crop, pixels, both ends included."""

    pca: float = Field(0.0, ge=0)
    """Standard deviation of AlexNet's PCA colour shift. 0.1 is the usual value; 0 is off."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < self.shorter_side[0] <= self.shorter_side[1]:
            raise ValueError(f"shorter_side {list(self.shorter_side)}: give [smaller, larger] in pixels")
        return self


class CifarAugment(_Augment):
    """Translation by some pixels."""

    kind: Literal["cifar"] = "cifar"
    """cifar: pad 4, random crop, flip (section 4.2)."""


class NoAugment(_Augment):
    """Nothing varies."""

    kind: Literal["none"] = "none"
    """none: the evaluation view."""


Augment = Annotated[ModernAugment | PaperAugment | CifarAugment | NoAugment, OneOf()]


class Loading(Strict):
    """How training images are varied and loaded, whatever is learned from them."""

    source: str

    augment: Augment = ModernAugment()

    decode: Literal["exact", "scaled", "nvjpeg"] = "exact"
    """Training images; evaluation is always exact. exact: pixel for pixel as PIL decodes. scaled: JPEGs at 1/2,
    1/4 or 1/8 of their size where the crop is that much larger than `size`; pays for photographs above 500 pixels.
    nvjpeg: decoded, cropped and resized on the GPU. Pixels differ: see docs/input.md."""

    resident: bool = False
    """Decode all images once, at the start, and keep them on the training device, where crops are then cut: for small
    images and nets that outrun any loader. Same pixels. For augment cifar and none, whose crops are not resized."""

    workers: int = Field(4, ge=0)
    """Loader processes for each training worker. 0: load in the training process."""

    on_bad: Literal["stop", "skip"] = "stop"
    """An unreadable image: stop and name it, or put the next image in its place, counted and named."""

    max_bad: int = Field(10, ge=0)
    """With on_bad skip: stop after so many different bad images all the same."""

    @model_validator(mode="after")
    def _loadable(self) -> Self:
        kinds = {"scaled": ("modern", "paper"), "nvjpeg": ("modern",)}.get(self.decode)
        if kinds and self.augment.kind not in kinds:
            raise ValueError(f"decode {self.decode} is for augment {' or '.join(kinds)}, not {self.augment.kind}")
        if self.resident and self.augment.kind not in ("cifar", "none"):
            raise ValueError(
                "resident is for augment cifar or none, whose crops are cut from one view of an image: "
                f"{self.augment.kind} crops and resizes each image anew; leave it off"
            )
        if self.on_bad == "stop" and self.max_bad != Loading.model_fields["max_bad"].default:
            raise ValueError("max_bad is read with on_bad skip only")
        return self


COMPILED = 8
"""Sizes of images that torch compiles one net for, its `recompile_limit`; beyond them it would go on without."""


class Progressive(Strict):
    """Progressive resizing: smaller images first, which cost less, then larger ones, as FFCV's recipes for ImageNet."""

    from_size: int = Field(0, ge=0)
    """Side that is trained at in epochs 0 to `start`, pixels. 0: `data.size` in all, whatever the other fields say."""

    start: int = Field(0, ge=0)
    """Last epoch, counted from 0, of the smallest images."""

    end: int = Field(0, ge=0, lt=2**31)
    """First epoch of images of `data.size`. In between the side grows with the epoch."""

    step: int = Field(32, ge=1)
    """Sides in between are the nearest multiples of so many pixels."""

    @model_validator(mode="before")
    @classmethod
    def _off(cls, tree: Any) -> Any:
        # So that the one word that messages name switches off what a recipe's file says.
        return {} if isinstance(tree, dict) and tree.get("from_size") in (0, "0") and tree.keys() <= FIELDS else tree

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.from_size and (self.start, self.end, self.step) != (0, 0, 32):
            raise ValueError("start, end and step are read with from_size only; give it, or leave them out")
        if self.from_size and self.from_size < 16:
            raise ValueError(f"from_size {self.from_size}: give 16 pixels or more, or 0 for data.size")
        if self.from_size and self.start >= self.end:
            raise ValueError(f"start {self.start} and end {self.end}: end must be the later epoch")
        return self

    def side(self, epoch: int, size: int) -> int:
        """Of the training images of an epoch, pixels, where `size` is the largest."""
        if not self.from_size or epoch >= self.end:
            return size
        share = max(0, epoch - self.start) / (self.end - self.start)
        between = self.step * round((self.from_size + share * (size - self.from_size)) / self.step)
        return min(max(between, self.from_size), size) if share else self.from_size

    def sides(self, size: int) -> Iterator[int]:
        """All of them, rising, one by one: epochs may be many."""
        epochs = range(self.end + 1)
        epoch = 0
        while epoch < len(epochs):
            yield (side := self.side(epoch, size))
            epoch = bisect_right(epochs, side, key=lambda one: self.side(one, size))


FIELDS = Progressive.model_fields.keys()


class _Data(Loading):
    """Where images come from and what the net sees of them."""

    size: int = Field(224, ge=16)
    """Side of the square the net is trained on and judged at, pixels."""

    progressive: Progressive = Progressive()

    eval_size: int = Field(0, ge=0)
    """Side of the square it is judged at, and which the artifact names as its input, where that is another: what is
    trained at random crops sees things larger than centre crops show them (FixRes, arXiv:1906.06423). 0: `size`."""

    crop_pct: float = Field(0.875, gt=0, le=1)
    """Evaluation: shorter side resized to size / crop_pct, then the centre cut out. 0.875 is 256 -> 224."""

    normalize: Literal["imagenet", "dataset", "pixel"] = "imagenet"
    """What is subtracted and divided by. imagenet: the customary constants. dataset: mean and deviation of each channel
    over the training images. pixel: their mean image (the paper) and the channels' deviation."""

    remote_cpus: int = Field(0, ge=0)
    """CPUs of the cluster that make each training worker's batches, on nodes without a GPU where there are any;
    `workers` then serve evaluation alone. 0: none. Same pixels and order. When it pays: see docs/input.md."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.remote_cpus and self.decode == "nvjpeg":
            raise ValueError(
                "remote_cpus make finished images, decode nvjpeg has the GPU make them: give one of the two"
            )
        if self.remote_cpus and self.resident:
            raise ValueError(
                "remote_cpus is not read with resident, whose images are decoded once: leave one of the two off"
            )
        if self.decode == "nvjpeg" and isinstance(self.augment, ModernAugment) and self.augment.policy == "increasing":
            raise ValueError("decode nvjpeg varies images as torchvision does: take augment.policy rand or trivial")
        if 0 < self.eval_size < 16:
            raise ValueError(f"eval_size {self.eval_size}: give 16 pixels or more, or 0 for size")
        if self.eval_size and self.normalize == "pixel":
            raise ValueError("normalize pixel: its mean image is of data.size; leave eval_size out, or take dataset")
        if self.progressive.from_size:
            if self.progressive.from_size >= self.size:
                raise ValueError(f"progressive.from_size {self.progressive.from_size}: give less than size {self.size}")
            if not isinstance(self.augment, ModernAugment):
                raise ValueError(
                    f"progressive is for augment modern, whose crops are resized, not for {self.augment.kind}; set "
                    "progressive.from_size 0"
                )
            if self.normalize == "pixel":
                raise ValueError(
                    "normalize pixel: its mean image is of data.size; set progressive.from_size 0, or take dataset"
                )
        if isinstance(self.augment, PaperAugment) and self.augment.shorter_side[0] < self.size:
            raise ValueError(f"augment.shorter_side {list(self.augment.shorter_side)} is below the crop of {self.size}")
        return self

    def trained_at(self, epoch: int) -> int:
        """Side of the square the net is trained on in an epoch, counted from 0, pixels."""
        return self.progressive.side(epoch, self.size)

    def check_compiled(self, mode: str) -> None:
        """ValueError where images grow through more sizes than a net is compiled for, if `mode` compiles it."""
        if mode != "none" and len(list(islice(self.progressive.sides(self.size), COMPILED + 1))) > COMPILED:
            raise ValueError(
                f"data.progressive has more than {COMPILED} sizes, the most that compute.compile {mode} compiles a net "
                f"for; set data.progressive.step above {self.progressive.step}, data.progressive.end nearer to start, "
                "or compute.compile none"
            )

    @property
    def smallest(self) -> tuple[int, str]:
        """Side of the smallest square that the net is shown, pixels, and the field that says so."""
        trained = "data.progressive.from_size" if self.progressive.from_size else "data.size"
        judged = "data.eval_size" if self.eval_size else "data.size"
        return min((self.trained_at(0), trained), (self.judged_at, judged), key=lambda one: one[0])

    @property
    def judged_at(self) -> int:
        """Side of the square the net is judged at, pixels."""
        return self.eval_size or self.size


class SyntheticData(_Data):
    """Scenes that are rendered when they are asked for."""

    source: Literal["synthetic"] = "synthetic"
    """synthetic: rendered scenes, no download."""

    train_images: int = Field(20_000, ge=1)
    """How many training images exist."""

    val_images: int = Field(2_000, ge=1)
    """How many validation images exist."""

    @model_validator(mode="after")
    def _no_files(self) -> Self:
        if self.decode != "exact":
            raise ValueError(f"decode {self.decode} is for JPEG files; source synthetic has none, use exact")
        return self


class StoredData(_Data):
    """Images in files."""

    source: Literal["imagefolder", "webdataset", "parquet"]
    """imagefolder: class folders. webdataset: tar shards with .jpg and .cls. parquet: the Hugging Face layout, image or
    img struct and label."""

    train: str = ""
    """Training images: directory, glob or brace pattern; local or a URL (s3://, gs://, ...)."""

    val: str = Field(min_length=1)
    """Validation images, likewise."""

    hold_out: int = Field(0, ge=0)
    """So many training images are not trained on and validate instead of `val`, always the same ones (the paper's
    45k/5k split of CIFAR-10, section 4.2); jobs/evaluate.py then judges on `val`. 0: none."""

    cache: str = ""
    """Folder for indexes and unpacked parquet. Empty: beside tar shards where writable, else ~/.cache/raybone."""

    keep_gb: float = Field(20.0, ge=0)
    """Of images read by URL, so much of each split stays in the cache of each machine, 1e9 bytes, and no more than half
    of what is free there. 0: nothing; every epoch reads all of them anew."""


Data = Annotated[SyntheticData | StoredData, OneOf()]
