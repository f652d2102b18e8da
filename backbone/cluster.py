"""Joining, counting and waiting for a Ray cluster: the ground of training, sweeps and preparing. Imports no torch."""

import os
import socket
from collections.abc import Callable
from typing import Any

from backbone.compute import Scaling
from backbone.errors import UserError

# Before ray is imported. Values a user has set win.
DEFAULTS = {
    "RAY_AUTH_MODE": "token",  # a driver with an address would else come without the token
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` rebuilds the environment for every worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed; 2 s by default
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's API shows the run
    "RAY_USAGE_STATS_ENABLED": "0",
}


def connect(say: Callable[[str], None]) -> tuple[Any, bool]:
    """Join the Ray cluster there is (RAY_ADDRESS, or `ray start` on this machine), or start one for this process.

    Returns the ray module and whether this call started or joined it. Worker output stays in Ray's logs: what a run has
    to say comes through the display.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return ray, False
    from ray._private.utils import read_ray_address
    from ray.exceptions import AuthenticationError

    address = os.environ.get("RAY_ADDRESS") or read_ray_address()
    if not os.environ.get("RAY_ADDRESS") and address and not _answers(address):
        # A cluster that did not end by `ray stop` leaves its address behind; Ray would wait for it for ever.
        say(f"the Ray cluster last started here, {address}, is gone; starting another")
        address = "local"
    try:
        context = ray.init(address, log_to_driver=False, logging_level="warning")
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address} wants a token that is not yours: copy its ~/.ray/auth_token here, or "
            "start a cluster for this run alone with RAY_ADDRESS=local"
        ) from error
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url} (it asks for a token: ray get-auth-token)")
    return ray, True


def dashboard_url() -> str:
    """Address of the joined cluster's own dashboard; empty where it has none."""
    from ray._private.worker import get_dashboard_url

    address = get_dashboard_url()
    return f"http://{address}" if address else ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def room(scaling: Scaling) -> int:
    """How many of the workers that `scaling` describes the cluster's nodes hold, as they are, with nothing on them."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) // need) for name, need in bundle(scaling).items()) for node in nodes)


def check_resources(scaling: Scaling) -> None:
    """UserError with the numbers where the cluster, as it is, cannot hold the workers; Ray would wait for ever."""
    import ray

    needs = bundle(scaling)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = room(scaling)
    needed = scaling.min_workers or scaling.num_workers
    if slots < needed and not scaling.autoscales:
        has = {name: int(sum(node.get(name, 0) for node in nodes)) for name in needs}
        raise UserError(
            f"scaling: {needed} workers of {words(needs)} each do not fit on the cluster, which has room for "
            f"{slots}: {len(nodes)} node(s) with {words(has)}. Ask for less, add nodes, or say "
            "scaling.autoscales if they come on demand"
        )


def bundle(scaling: Scaling) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {})


def words(resources: dict[str, Any]) -> str:
    """For a message: `2 CPU, 1 GPU`."""
    return ", ".join(f"{count:g} {name}" for name, count in resources.items())
