"""What `jobs/doctor.py` is told. Imports nothing slow."""

from typing import Literal

from pydantic import Field, model_validator

from backbone.options import Strict


class Doctor(Strict):
    """Look a split of images over, or two. Values are those of a recipe's `data:` section."""

    source: Literal["imagefolder", "webdataset", "parquet", "ilsvrc", "coco", "voc"] = "coco"
    """Format: labelled images (ilsvrc: an official tar of ImageNet), or annotated ones, coco and voc."""

    images: str = ""
    """What a recipe has as data.train or data.val. coco: folder or URL of images. voc: folder:split[,folder:split]."""

    val: str = ""
    """Labelled images: another split, likewise; classes are compared, and the same image in both is found."""

    annotations: str = ""
    """coco: the JSON. Empty: annotations/instances_<name of the folder>.json beside the folder of images."""

    share: float = Field(0.0, ge=0, le=1)
    """Annotated images: say what a recipe's data.share leaves of them. 0: not asked."""

    check_images: bool = True
    """Decode every image, too: missing, damaged, turned, tiny ones, of another size than recorded, in two places."""

    cache: str = ""
    """Labelled images: folder for indexes and unpacked parquet. Empty: ~/.cache/raybone."""

    json_file: str = ""
    """Write the report as JSON to this file, too."""

    @model_validator(mode="after")
    def _possible(self) -> "Doctor":
        for field in ("val", "cache") if self.source in ("coco", "voc") else ("annotations", "share"):
            if getattr(self, field):
                alone = f"; look at it by itself, --images {self.val}" if field == "val" else ""
                raise ValueError(f"{field} is not read by source {self.source}; leave it out{alone}")
        return self
