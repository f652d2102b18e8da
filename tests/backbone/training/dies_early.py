"""Two workers on a cluster of two CPUs, one of which dies as it is told what to run: FOLDER MAX_FAILURES.

Run as a script, by test_ray_train.py, which shares a larger cluster.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from backbone.cluster import set_defaults
from backbone.compute import Scaling
from backbone.errors import Lost
from backbone.training.ray_train import launch
from backbone.training.world import Payload
from tests.backbone.training.test_ray_train import ranks_there


class DiesWhenRead(Payload):
    """Ends the first process of a worker's that reads it for the second time, which is in `run_train_fn`."""

    def __reduce__(self) -> Any:
        return _read, (self.url,)


def _read(url: str) -> DiesWhenRead:
    if b"RayTrainWorker" in Path("/proc/self/cmdline").read_bytes():
        mark = Path(url, f"read-by-{os.getpid()}")
        if mark.exists():
            with suppress(FileExistsError):
                Path(url, "died").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        mark.touch()
    return DiesWhenRead(url)


def main(folder: str, max_failures: str) -> None:
    set_defaults()
    import ray

    ray.init("local", num_cpus=2, log_to_driver=False)
    Path(folder, "run.json").write_text("{}")
    try:
        print(launch(ranks_there, DiesWhenRead(folder), Scaling(num_workers=2, max_failures=int(max_failures))))
    except Lost as error:
        print(f"Lost: {error}")


if __name__ == "__main__":
    from tests.backbone.training import dies_early  # pickled by name, which __main__ is not everywhere

    dies_early.main(*sys.argv[1:])
