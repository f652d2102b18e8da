"""Say everything that is wrong with annotated images, before training meets it:

python jobs/doctor.py --source coco --images /data/coco/val2017
python jobs/doctor.py --source voc --images /data/VOC2007:trainval,/data/VOC2012:trainval --json_file report.json

Exit code 0: no errors. 1: errors. 2: there is nothing of the kind at the place named.
"""

import json
import sys
from pathlib import Path
from typing import Literal

from backbone.cli import fail, parse
from backbone.errors import UserError
from backbone.options import Strict


class Doctor(Strict):
    """Look a split of annotated images over. Values are those of a recipe's `data:` section."""

    source: Literal["coco", "voc"] = "coco"
    """Format of the annotations."""

    images: str = ""
    """What a recipe has as data.train or data.val. coco: folder or URL of images. voc: folder:split[,folder:split]."""

    annotations: str = ""
    """coco: the JSON. Empty: annotations/instances_<name of the folder>.json beside the folder of images."""

    check_images: bool = True
    """Decode every image: missing, damaged and turned ones, and those of another size than recorded."""

    json_file: str = ""
    """Write the report as JSON to this file, too."""


def main() -> None:
    options, _ = parse(Doctor, sys.argv[1:])
    from detection.data.doctor import examine  # from here on OpenCV is imported

    try:
        if not options.images:
            raise UserError("images: name the folder, such as --images /data/coco/val2017")
        report = examine(options.source, options.images, options.annotations, options.check_images)
        if options.json_file:
            try:
                Path(options.json_file).expanduser().write_text(json.dumps(report.as_dict(), indent=1) + "\n")
            except OSError as error:
                raise UserError(f"json_file {options.json_file}: {error.strerror}") from error
    except UserError as error:
        fail(error)
    print(report.as_text())
    raise SystemExit(1 if report.errors else 0)


if __name__ == "__main__":
    main()
