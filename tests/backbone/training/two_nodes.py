"""Run by test_ray_train.py in a process of its own: a cluster of two nodes on this host, one of which dies mid-run."""

import copy
import os
import sys
import threading
import time
from pathlib import Path

os.environ |= {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}

import torch

from backbone.artifact import load
from backbone.cli import validate
from backbone.cluster import DEFAULTS
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe
from tests.conftest import TINY

os.environ |= {name: value for name, value in DEFAULTS.items() if name not in os.environ}

import ray
from ray.cluster_utils import Cluster


def recipe(storage: str, name: str, **scaling: object) -> Recipe:
    changes = {"name": name, "run.storage": storage, "optim.micro_batch": 8, "schedule.total": 60}
    changes |= {"run.checkpoint_every": 5, **{f"scaling.{field}": value for field, value in scaling.items()}}
    return validate(Recipe, copy.deepcopy(TINY), "two_nodes", changes)


def main(storage: str) -> None:
    # Addresses of their own: Ray tells nodes apart by them.
    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    head = {**size, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
    other = cluster.add_node(**size, node_ip_address="127.0.0.3")
    ray.init(address=cluster.address, log_to_driver=False)
    elastic = recipe(storage, "elastic", num_workers=2, min_workers=1, placement="SPREAD", max_failures=5)
    checkpoints = Path(storage) / "elastic" / "checkpoints"

    def kill() -> None:
        while not list(checkpoints.glob("step-*")):
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)
        print("killed a node", flush=True)

    killer = threading.Thread(target=kill)
    killer.start()
    launch(pretrain, prepare(elastic), elastic.scaling)
    killer.join()
    ray.shutdown()
    cluster.shutdown()

    alone = recipe(storage, "alone")
    launch(pretrain, prepare(alone), alone.scaling)
    torch.set_num_threads(1)
    a, b = (load(f"{storage}/{name}/artifact")[0].state_dict() for name in ("elastic", "alone"))
    different = [k for k in a if "running" not in k and not torch.equal(a[k], b[k])]
    print("weights equal" if not different else f"different: {different}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
