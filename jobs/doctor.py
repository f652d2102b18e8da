"""Say everything that is wrong with labelled or annotated images, before training meets it:

python jobs/doctor.py --source imagefolder --images /data/imagenet/train --val /data/imagenet/val
python jobs/doctor.py --source coco --images /data/coco/val2017
python jobs/doctor.py --source voc --images /data/VOC2007:trainval,/data/VOC2012:trainval --json_file report.json

Exit code 0: no errors. 1: errors. 2: there is nothing of the kind at the place named.
"""

import backbone.begin  # noqa: F401

# isort: split
import sys

from backbone.cli import parse, run_main
from backbone.data.doctor_options import Doctor
from backbone.errors import UserError
from backbone.next_steps import after_doctor


def main() -> None:
    asked, _ = parse(Doctor, sys.argv[1:], doc=__doc__)
    if not asked.images:
        raise UserError("images: name the folder, such as --images /data/coco/val2017")
    from backbone.data.doctor import examine  # from here on OpenCV is imported
    from detection.data import doctor

    try:
        if asked.source in ("coco", "voc"):
            report = doctor.examine(asked.source, asked.images, asked.annotations, asked.check_images, asked.share)
        else:
            report = examine(asked.source, asked.images, asked.val, asked.check_images, asked.cache)
    except UserError as error:
        meant = doctor.looks_like(asked.images)
        given = f"--source {asked.source} --images {asked.images}"
        raise UserError(f"{error}; perhaps you meant {meant}" if meant not in ("", given) else str(error)) from error
    if asked.json_file:
        report.write(asked.json_file)
    print(report.as_text())
    if not report.errors:
        val = doctor.held_out(asked.images) if asked.source == "voc" else asked.val
        print(after_doctor(asked.source, asked.images, val, report.num_images, asked.annotations))
    raise SystemExit(1 if report.errors else 0)


if __name__ == "__main__":
    run_main(main)
