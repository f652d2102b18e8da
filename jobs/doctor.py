"""Say everything that is wrong with labelled or annotated images, before training meets it:

python jobs/doctor.py --source imagefolder --images /data/imagenet/train --val /data/imagenet/val
python jobs/doctor.py --source coco --images /data/coco/val2017
python jobs/doctor.py --source voc --images /data/VOC2007:trainval,/data/VOC2012:trainval --json_file report.json

Exit code 0: no errors. 1: errors. 2: there is nothing of the kind at the place named.
"""

import backbone.begin  # noqa: F401

# isort: split
import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import model_validator

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

    check_images: bool = True
    """Decode every image, too: missing, damaged, turned, tiny ones, of another size than recorded, in two places."""

    cache: str = ""
    """Labelled images: folder for indexes and unpacked parquet. Empty: ~/.cache/raybone."""

    json_file: str = ""
    """Write the report as JSON to this file, too."""

    @model_validator(mode="after")
    def _possible(self) -> "Doctor":
        for field in ("val", "cache") if self.source in ("coco", "voc") else ("annotations",):
            if getattr(self, field):
                raise ValueError(f"{field} is not read by source {self.source}; leave it out")
        return self


def main() -> None:
    options, _ = parse(Doctor, sys.argv[1:])
    if not options.images:
        raise UserError("images: name the folder, such as --images /data/coco/val2017")
    if options.source in ("coco", "voc"):
        from detection.data import doctor  # from here on OpenCV is imported

        report = doctor.examine(options.source, options.images, options.annotations, options.check_images)
    else:
        from backbone.data.doctor import examine

        report = examine(options.source, options.images, options.val, options.check_images, options.cache)
    if options.json_file:
        try:
            Path(options.json_file).expanduser().write_text(json.dumps(report.as_dict(), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"json_file {options.json_file}: {error.strerror}") from error
    print(report.as_text())
    raise SystemExit(1 if report.errors else 0)


if __name__ == "__main__":
    run_main(main)
