"""Say everything that is wrong with labelled or annotated images, before training meets it:

python jobs/doctor.py --source imagefolder --images /data/imagenet/train --val /data/imagenet/val
python jobs/doctor.py --source coco --images /data/coco/val2017
python jobs/doctor.py --source voc --images /data/VOC2007:trainval,/data/VOC2012:trainval --json_file report.json

Exit code 0: no errors. 1: errors. 2: there is nothing of the kind at the place named.
"""

import backbone.begin  # noqa: F401

# isort: split
import sys
from typing import Literal

from pydantic import Field, model_validator

from backbone.cli import parse, run_main
from backbone.errors import UserError
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
                raise ValueError(f"{field} is not read by source {self.source}; leave it out")
        return self


def main() -> None:
    asked, _ = parse(Doctor, sys.argv[1:])
    if not asked.images:
        raise UserError("images: name the folder, such as --images /data/coco/val2017")
    if asked.source in ("coco", "voc"):
        from detection.data import doctor  # from here on OpenCV is imported

        report = doctor.examine(asked.source, asked.images, asked.annotations, asked.check_images, asked.share)
    else:
        from backbone.data.doctor import examine

        report = examine(asked.source, asked.images, asked.val, asked.check_images, asked.cache)
    if asked.json_file:
        report.write(asked.json_file)
    print(report.as_text())
    raise SystemExit(1 if report.errors else 0)


if __name__ == "__main__":
    run_main(main)
