"""Put detectors and backbones behind HTTP, on this machine or on a Ray cluster:

python jobs/serve.py --artifact runs/my-detector/artifact
python jobs/serve.py --artifact boxes=runs/my-detector/artifact classes=runs/my-backbone/artifact --max_replicas 8
python jobs/serve.py --artifact s3://bucket/runs/my-detector/artifact --host 0.0.0.0 --detach true

http://127.0.0.1:8000/ then is a page to drop pictures on, /docs says what programs ask. Served again under the same
--name, other artifacts take the place of those that are served, without a lost request.
"""

import importlib.util
import sys
import time

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.cluster import set_defaults
from backbone.errors import UserError
from backbone.extras import how_to_install
from detection.serving.options import Serving, token_hash

NEEDS = ("fastapi", "uvicorn")


def main() -> None:
    options, _ = parse(Serving, sys.argv[1:], doc=__doc__)
    absent = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"serving needs {absent[0]}: {how_to_install('serve')}")
    token_hash(options)  # says at once that there is none
    set_defaults()
    from detection.serving.run import start  # from here on torch and Ray are imported, which takes seconds

    end = start(options)
    if options.detach:
        print("it stays on the cluster; serve shutdown ends all that is served there")
        return
    print("Ctrl-C ends it")
    try:
        while True:
            time.sleep(3600)
    finally:
        end()


if __name__ == "__main__":
    run_main(main)
