"""Make tar shards of images, verified, reduced and encoded once instead of in every epoch:

python jobs/prepare.py --source imagefolder --images /data/imagenet/train --output /data/shards/train --shorter_side 256
python jobs/prepare.py --source ilsvrc --images /data/ILSVRC2012_img_val.tar --output /data/shards/val --format raw

Run the same again to go on after a stop, or to verify what is there.
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.data.prepare.options import Prepare
from backbone.next_steps import after_preparing


def main() -> None:
    options, _ = parse(Prepare, sys.argv[1:], doc=__doc__)
    from backbone.data.prepare.prepare import prepare  # from here on OpenCV is imported

    done = prepare(options)
    print(done.as_text())
    print(after_preparing(options.output))


if __name__ == "__main__":
    run_main(main, "go on")
