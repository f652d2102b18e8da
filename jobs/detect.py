"""Detect in a folder of images, a COCO list or a list of Pascal VOC, on this machine or on a Ray cluster:

python jobs/detect.py --detector runs/my-detector/artifact --images photos --output found
python jobs/detect.py --detector runs/my-detector/artifact --images VOC2007:test --output found --num_workers 8
python jobs/detect.py --detector runs/my-detector/artifact --images list.json --image_folder photos --output found

Run the same again to go on after a stop.
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from detection.detecting.options import Detecting


def main() -> None:
    options, _ = parse(Detecting, sys.argv[1:], doc=__doc__)
    from detection.detecting.run import detect_all  # from here on torch is imported, which takes seconds

    print(detect_all(options).as_text())


if __name__ == "__main__":
    run_main(main, "go on")
