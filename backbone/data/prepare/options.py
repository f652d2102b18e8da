"""What `jobs/prepare.py` is told. Imports nothing slow."""

from typing import Any, Literal

from pydantic import Field, model_validator

from backbone.options import Seed, Strict

CONTENT = ("format", "shorter_side", "quality", "images_per_shard", "seed")  # what bytes of shards depend on


class Prepare(Strict):
    """Make tar shards of one split of a data set. Run it again to go on after a stop, or to verify what is there."""

    source: Literal["imagefolder", "webdataset", "parquet", "ilsvrc", "synthetic"] = "imagefolder"
    """What the images lie in. ilsvrc: the official ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar, never unpacked;
    the latter needs ILSVRC2012_devkit_t12.tar.gz beside it. The others are those of a recipe's data.source."""

    images: str = ""
    """Where: directory, file, glob or brace pattern; local or a URL."""

    output: str = ""
    """Folder or URL of the shards, which every node must see. One split, one set of options a folder."""

    format: Literal["jpeg", "raw"] = "jpeg"
    """jpeg: images that need no change keep their bytes, others become JPEG. raw: uint8 pixels, .npy files."""

    shorter_side: int = Field(0, ge=0)
    """Larger images are reduced to this shorter side, pixels; none is enlarged. 0: sizes stay."""

    quality: int = Field(90, ge=1, le=100)
    """jpeg: of the images that are encoded."""

    images_per_shard: int = Field(2000, ge=1)
    """Images of a shard, which is the unit of work and of resuming."""

    seed: Seed = 0
    """Of the order of images over all shards; synthetic: of the scenes, too."""

    on_bad: Literal["stop", "skip"] = "stop"
    """A damaged image: stop and name it, or leave it out and report it. Storage that fails always stops."""

    max_bad: int = Field(10, ge=0)
    """With on_bad skip: stop after so many bad images all the same."""

    num_workers: int = Field(64, ge=0)
    """Shards made at a time, each a Ray task on one core of the cluster, as far as it has them. 0: one by one in this
    process, without Ray."""

    cache: str = ""
    """Folder for indexes and unpacked parquet. Empty: ~/.cache/raybone."""

    num_images: int = Field(20_000, ge=1)
    """synthetic: how many images exist."""

    size: int = Field(224, ge=16)
    """synthetic: side of the images, pixels."""

    split: Literal["train", "val"] = "train"
    """synthetic: which scenes; splits of one seed share none."""

    @property
    def content(self) -> dict[str, Any]:
        """The options that decide what is in the shards."""
        return {name: getattr(self, name) for name in CONTENT}

    @model_validator(mode="after")
    def _possible(self) -> "Prepare":
        def given(field: str) -> bool:
            return getattr(self, field) != Prepare.model_fields[field].default

        if not self.output:
            raise ValueError("output is empty: name the folder the shards go to")
        if self.source == "synthetic":
            if self.images or self.cache:
                raise ValueError("images and cache are not read by source synthetic")
        elif not self.images:
            raise ValueError(f"images is empty: source {self.source} needs the location of its images")
        for field in ("num_images", "size", "split"):
            if self.source != "synthetic" and given(field):
                raise ValueError(f"{field} is read by source synthetic, not by {self.source}")
        if self.format == "raw" and given("quality"):
            raise ValueError("quality is read by format jpeg, not by raw")
        if self.on_bad == "stop" and given("max_bad"):
            raise ValueError("max_bad is read with on_bad skip only")
        return self
